"""Seconds for one image through a vision tower and projector: ours at fp32 and int8, torch, torch.compile and OpenVINO.

python -m benchmarks.shapes make llava-1.1b /tmp/llava [--outliers 32]
sh benchmarks/peers/openvino/setup.sh .venv-openvino
python -m benchmarks.encoder_speed /tmp/llava --openvino .venv-openvino/bin/python

Every engine waits in a process of its own with the model loaded; they run in turn, so that a busy moment hits all of them. Errors
are relative to torch at fp32 (norm of the difference over the norm), on the one view that is timed: families of square views only.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.engines import Engine

PEER = Path(__file__).parent / "peers/openvino/encoder.py"


def main(checkpoint: Path, openvino: Path | None, threads: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory(dir=checkpoint.parent) as name:
        folder = Path(name)
        inputs = folder / "input.npz"
        _save_input(checkpoint, inputs)
        bundles = {}
        for dtype, target in (("fp32", "cpu"), ("int8", "cpu"), ("fp32", "tensorrt")):
            out = folder / f"{dtype}-{target}"
            quietly("export", str(checkpoint), str(out), "--dtype", dtype, "--target", target)
            bundles[dtype, target] = out / f"vision/{target}/model.onnx"
        here = [sys.executable, "-m", "benchmarks.encoder_speed", "--worker"]
        engines = {
            "torch eager fp32": [*here, "eager", str(checkpoint), str(inputs), str(threads)],
            "torch.compile fp32": [*here, "compile", str(checkpoint), str(inputs), str(threads)],
            "vlm-edge fp32": [*here, "onnx", str(bundles["fp32", "cpu"]), str(inputs), str(threads)],
            "vlm-edge int8": [*here, "onnx", str(bundles["int8", "cpu"]), str(inputs), str(threads)],
        }
        if openvino:
            standard = str(bundles["fp32", "tensorrt"])
            for precision in ("f32", "default"):
                engines[f"OpenVINO {precision}"] = [
                    str(openvino),
                    str(PEER),
                    standard,
                    str(inputs),
                    str(threads),
                    precision,
                ]
        _compare([Engine(name, command, threads) for name, command in engines.items()], folder, repeats)


def _compare(engines: list[Engine], folder: Path, repeats: int) -> None:
    outputs, times = {}, {engine.name: [] for engine in engines}
    for number, engine in enumerate(engines):
        file = folder / f"{number}.npy"
        engine.ask(f"output {file}")
        outputs[engine.name] = np.load(file).reshape(-1)
    for _ in range(repeats):
        for engine in engines:
            times[engine.name].append(float(engine.ask("run")))
    reference = outputs[engines[0].name]
    base = statistics.median(times[engines[0].name])
    print(f"| engine | version | median of {repeats} | spread | torch eager / it | relative error |")
    print("| --- | --- | ---: | --- | ---: | ---: |")
    for engine in engines:
        measured = times[engine.name]
        error = np.linalg.norm(outputs[engine.name] - reference) / np.linalg.norm(reference)
        median = statistics.median(measured)
        spread = f"{min(measured):.0f}-{max(measured):.0f} ms"
        print(f"| {engine.name} | {engine.version} | {median:.0f} ms | {spread} | {base / median:.2f} | {error:.2e} |")
        engine.close()


def _save_input(checkpoint: Path, file: Path) -> None:
    from vlm_edge.pipeline.exporting.example_inputs import tower_inputs
    from vlm_edge.pipeline.exporting.source import describe

    source = describe(checkpoint)
    arrays = tower_inputs(source.images, source.settings, tuple(source.components.VisionAndProjector.axes))
    np.savez(file, **{name: array[:1] for name, array in arrays[-1].items()})


def quietly(*arguments: str) -> None:
    """A command of vlm-edge whose report nobody reads; raises CalledProcessError when it fails."""
    subprocess.run([sys.executable, "-m", "vlm_edge", *arguments, "--json"], check=True, stdout=subprocess.DEVNULL)


def _torch_runner(checkpoint: str, compiled: bool) -> tuple[str, Callable[[dict[str, np.ndarray]], np.ndarray]]:
    import torch

    from vlm_edge.models.weights import load_parts
    from vlm_edge.pipeline.exporting.source import describe

    source = describe(checkpoint)
    parts = source.components.PARTS
    module = source.components.VisionAndProjector(load_parts(source.checkpoint, parts, dtype=torch.float32))
    if compiled:
        module = torch.compile(module)

    def run(arrays: dict[str, np.ndarray]) -> np.ndarray:
        with torch.inference_mode():
            return module(**{name: torch.from_numpy(array) for name, array in arrays.items()}).numpy()

    return f"torch {torch.__version__}", run


def _onnx_runner(graph: str, threads: int) -> tuple[str, Callable[[dict[str, np.ndarray]], np.ndarray]]:
    import onnxruntime

    from vlm_edge.backends.onnx.runner import OnnxEncoder

    encoder = OnnxEncoder(Path(graph), target="cpu", threads=threads)
    return f"onnxruntime {onnxruntime.__version__}", encoder.encode


def worker(kind: str, source: str, inputs: str, threads: str) -> None:
    """One engine of this environment, in the protocol of peers/openvino/encoder.py."""
    arrays = dict(np.load(inputs))
    version, run = _onnx_runner(source, int(threads)) if kind == "onnx" else _torch_runner(source, kind == "compile")
    run(arrays)
    print(version, flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        result = run(arrays)
        spent = 1000 * (time.perf_counter() - start)
        if line.startswith("output "):
            np.save(line.split(maxsplit=1)[1].strip(), result)
        print(f"{spent:.3f}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
        raise SystemExit
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--openvino", type=Path, help="interpreter of the environment that has OpenVINO")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    a = parser.parse_args()
    main(a.checkpoint, a.openvino, a.threads, a.repeats)
