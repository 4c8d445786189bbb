"""The whole chain side by side on the same random weights: this project, transformers, OpenVINO GenAI and llama.cpp.

    python -m benchmarks.shapes make llava-1.1b CHECKPOINT
    vlm-edge export CHECKPOINT BUNDLE && vlm-edge quantize CHECKPOINT BUNDLE --method rtn --target cpu --lm-head int8
    sh benchmarks/peers/openvino/setup.sh .venv-openvino --decoder && sh benchmarks/peers/llama_cpp/setup.sh .venv-llama
    python -m benchmarks.peers.compare CHECKPOINT BUNDLE --openvino .venv-openvino/bin/python \\
        --llama .venv-llama/bin/python --out benchmarks/results/peers

LLaVA checkpoints of `benchmarks.shapes`. Writes OUT.md and OUT.png. In each round every engine is started anew, in turn, and gives
every figure once: so one model is in memory at a time, and peak memory is of a fresh process that answered two questions about an
image. --models keeps the peers' converted models. --fp32: every engine at full precision with a bundle of `vlm-edge export
--component vision,projector,llm --dtype fp32`; outputs must then agree, which proves that the same thing is compared.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.decoder_speed import CHECKED_PROMPT, NEW_TOKENS, PROMPTS, convert
from benchmarks.encoder_speed import quietly
from benchmarks.engines import ROOT, Engine
from benchmarks.peers.chain import Asked
from benchmarks.peers.decoding import CONTEXT, Facts, Timing
from benchmarks.peers.openvino.renamed import write_renamed
from benchmarks.peers.report import LLAMA, OPENVINO, OURS, OURS_FP32, OURS_HALVED, TORCH, Found, draw, figures, markdown
from vlm_edge.core import host
from vlm_edge.pipeline.machine import cpu_name

MOST_DIFFERENCE = 1e-2
"""Relative, of outputs of engines that all compute at full precision (llama.cpp keeps matrices and cache in fp16)."""
IMAGE_PX = (1024, 768)
KEPT = 0.5
"""Share of the image's tokens that stays in one row; results/visual_tokens.md has what that costs in answers."""
MOST_ROUNDING = 0.2
"""The same of features where towers are rounded; those of a tower with other weights differ by about 1."""
FP32_ROOM = 2.5
"""Free memory in sizes of an fp16 checkpoint from which transformers gets fp32."""
NOTES = (
    "error: the norm of the difference over the norm, of one view's features and of the logits behind {prompt} tokens, against "
    "transformers at {dtype}",
    "share of bandwidth: what a token reads, weights and KV cache, against what threads reach that only read",
    "TTFT: from an image file and a question, warm; peak: resident memory of the process that did so, mapped files included",
    "half the image tokens: fp32 vision, `--reduce landmark --keep {kept}`, whose answers on documents are as often right as with "
    "every token (visual_tokens.md); the other rows read every token",
    "OpenVINO's vision, prefill and decode go through its Runtime on the files that GenAI reads; a question through VLMPipeline",
    "this project's context is {context} positions, as llama.cpp's; the other engines' caches grow",
)
LLAMA_SEES = (
    "llama.cpp sees through libmtmd, with the order of a LLaVA's class token mended (setup.sh): it pads an image to a square where "
    "the others crop it, reads text and image in calls of their own, and takes views one by one, as pixels of 8 bits that it "
    "normalises within the time of its vision"
)
LLAMA_BLIND = (
    "llama.cpp answers no question about an image here: it was built without libmtmd, so its peak is its decoder's"
)


@dataclass(frozen=True)
class Peer:
    """command: of a worker (peers/chain.py). asks: about images. parts: a tower and a decoder that are timed apart."""

    name: str
    command: Sequence[str]
    asks: bool = True
    parts: bool = True


def main(arguments: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as name:
        work = Path(name)
        models = arguments.models or work
        models.mkdir(parents=True, exist_ok=True)
        dtype = _torch_dtype(arguments)
        peers = _peers(arguments, models, dtype)
        images, pixels = _inputs(arguments.checkpoint, work, max(arguments.views))
        found: dict[str, Found] = {}
        outputs: dict[str, dict[str, np.ndarray]] = {}
        read = []
        for number in range(arguments.repeats):
            for peer in peers:
                read.append(_bandwidth(arguments.threads))
                engine = Engine(peer.name, peer.command, arguments.threads)
                _round(engine, peer, found, images, pixels, arguments)
                if number == 0:
                    outputs[peer.name] = _outputs(engine, peer, pixels, work)
                engine.close()
                print(f"round {number + 1} of {arguments.repeats}: {peer.name}", file=sys.stderr, flush=True)
        _compare_outputs(found, outputs)
    bandwidth = statistics.median(read)
    of = {name: figures(each, NEW_TOKENS, bandwidth) for name, each in found.items()}
    about = _about(arguments)
    notes = [note.format(prompt=CHECKED_PROMPT, dtype=dtype, context=CONTEXT, kept=KEPT) for note in NOTES]
    notes += [LLAMA_SEES if peer.asks else LLAMA_BLIND for peer in peers if peer.name == LLAMA]
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(found, of, bandwidth, about, notes)
    arguments.out.with_suffix(".md").write_text(text, "utf-8")
    draw(of, f"{arguments.checkpoint.name}, {cpu_name()}, {arguments.threads} threads, {datetime.date.today()}",
         arguments.out.with_suffix(".png"))  # fmt: skip
    print(text)
    if wrong := disagreements(found, exact=arguments.fp32):
        raise SystemExit(f"further from transformers than rounding explains: {', '.join(wrong)}")


def _peers(arguments: argparse.Namespace, models: Path, dtype: str) -> list[Peer]:
    """Converted where they are not there yet."""
    here, threads = [sys.executable, "-m"], str(arguments.threads)

    def ours(bundle: Path, *more: str) -> list[str]:
        return [*here, "benchmarks.peers.bundle_chain", str(bundle), threads, *more]

    peers = [Peer(TORCH, [*here, "benchmarks.peers.torch_chain", str(arguments.checkpoint), threads, dtype])]
    peers.insert(0, Peer(OURS_FP32, ours(arguments.bundle)))
    if not arguments.fp32:
        peers.insert(1, Peer(OURS_HALVED, ours(arguments.bundle, str(KEPT)), parts=False))
        peers.insert(0, Peer(OURS, ours(_with_int8_vision(arguments.checkpoint, arguments.bundle, models))))
    if arguments.openvino:
        model = models / ("openvino-genai-fp32" if arguments.fp32 else "openvino-genai-int4")
        _export_openvino(arguments, model)
        hint = ["f32"] if arguments.fp32 else []
        command = [str(arguments.openvino), "-m", "benchmarks.peers.openvino.vlm", str(model), threads, *hint]
        peers.append(Peer(OPENVINO, command))
    if arguments.llama:
        kind = "f16" if arguments.fp32 else "q4_0"
        model = models / f"{kind}.gguf"
        if not model.exists():
            command = [str(arguments.llama), "-m", "benchmarks.peers.llama_cpp.convert"]
            convert(arguments.checkpoint, models, command, model, threads, kind)
        sees = _has_mtmd(arguments.llama)
        eyes = [str(_projector(arguments, models)), str(arguments.checkpoint / "tokenizer.json")] if sees else []
        command = [str(arguments.llama), "-m", "benchmarks.peers.llama_cpp.chain", str(model), threads, *eyes]
        peers.append(Peer(LLAMA, command, asks=sees))
    return [peer for peer in peers if not arguments.only or peer.name in arguments.only]


def _with_int8_vision(checkpoint: Path, bundle: Path, models: Path) -> Path:
    """The same decoder, by hard links, behind a tower in int8."""
    twin = models / f"{bundle.resolve().name}-int8-vision"
    if not twin.exists():
        partial = twin.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(bundle, partial, copy_function=_link)
        quietly("export", str(checkpoint), str(partial), "--dtype", "int8")
        partial.rename(twin)
    return twin


def _link(source: str, target: str) -> None:
    """Files of a bundle are replaced, never written into; copied where the disk is another."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _export_openvino(arguments: argparse.Namespace, model: Path) -> None:
    if model.exists():
        return
    partial = model.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    weights = ["fp32"] if arguments.fp32 else ["int4", "--group-size", "128", "--ratio", "1.0"]
    tool = arguments.openvino.parent / "optimum-cli"
    older = model.with_suffix(".checkpoint")
    shutil.rmtree(older, ignore_errors=True)
    write_renamed(arguments.checkpoint, older)
    source = ["-m", str(older), "--task", "image-text-to-text"]
    subprocess.run(
        [str(tool), "export", "openvino", *source, "--weight-format", *weights, str(partial)],
        check=True,
        stdout=sys.stderr,
    )
    shutil.rmtree(older)
    partial.rename(model)


def _has_mtmd(python: Path) -> bool:
    """Whether an environment's llama.cpp was built with libmtmd."""
    tried = subprocess.run([str(python), "-c", "import llama_cpp.mtmd_cpp"], check=False, capture_output=True)
    return tried.returncode == 0


def _projector(arguments: argparse.Namespace, models: Path) -> Path:
    """The tower and the projector as llama.cpp reads them, in fp16."""
    file = models / "mmproj-f16.gguf"
    if not file.exists():
        command = [
            str(arguments.llama),
            "-m",
            "benchmarks.peers.llama_cpp.projector",
            str(arguments.checkpoint),
            str(file),
        ]
        subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=sys.stderr)
    return file


def _torch_dtype(arguments: argparse.Namespace) -> str:
    """fp32 where it fits beside what the machine does, else bf16."""
    if arguments.fp32:
        return "fp32"
    size = sum(file.stat().st_size for file in arguments.checkpoint.glob("*.safetensors"))
    return "fp32" if (host.available_bytes() or 0) > FP32_ROOM * size else "bf16"


def _inputs(checkpoint: Path, work: Path, views: int) -> tuple[tuple[Path, Path], Path]:
    """Two image files, to warm up with and to ask about, and the normalised pixels of so many views.

    Two, because some engines keep what they computed for a prompt and reuse it for one that begins in the same way. Pixels are of
    8 bits before they are normalised, since llama.cpp takes no others.
    """
    side = json.loads((checkpoint / "config.json").read_text())["vision_config"]["image_size"]
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    random = np.random.default_rng(0)
    images = work / "warm.png", work / "image.png"
    for path in images:
        small = random.integers(0, 256, (IMAGE_PX[1] // 64, IMAGE_PX[0] // 64, 3), np.uint8)
        Image.fromarray(small).resize(IMAGE_PX, Image.Resampling.BICUBIC).save(path)
    colours, noise = random.normal(size=(views, 3, 1, 1)), random.normal(size=(views, 3, side, side))
    mean, std = (np.reshape(processor[f"image_{name}"], (3, 1, 1)) for name in ("mean", "std"))
    levels = np.clip(np.rint(255 * ((colours + noise) / 2**0.5 * std + mean)), 0, 255)
    np.save(work / "pixels.npy", ((levels / 255 - mean) / std).astype(np.float32))
    return images, work / "pixels.npy"


def _order(engine: Engine, order: str, **more: Any) -> Any:
    return json.loads(engine.ask(json.dumps({"order": order, **more})))


def _round(
    engine: Engine, peer: Peer, found: dict[str, Found], images: tuple[Path, Path], pixels: Path,
    arguments: argparse.Namespace,
) -> None:  # fmt: skip
    """Every figure once, each behind a call that warms up."""
    asked, (warm, image) = None, images
    if peer.asks:
        _order(engine, "ask", image=str(warm), new=2)
        asked = Asked(**_order(engine, "ask", image=str(image), new=NEW_TOKENS))
    facts = _order(engine, "facts")
    mine = found.setdefault(
        peer.name, Found(Facts(**{k: v for k, v in facts.items() if k != "vision"}), facts["vision"])
    )
    if asked:
        mine.asked.append(asked)
    if not peer.parts:
        return
    if asked:
        for views in arguments.views:
            order = {"pixels": str(pixels), "views": views}
            _order(engine, "vision", **order)
            mine.vision_ms.setdefault(views, []).append(_order(engine, "vision", **order))
    _order(engine, "run", prompt=CHECKED_PROMPT, new=2)
    for prompt in PROMPTS:
        mine.timings.setdefault(prompt, []).append(Timing(**_order(engine, "run", prompt=prompt, new=NEW_TOKENS)))


def _outputs(engine: Engine, peer: Peer, pixels: Path, work: Path) -> dict[str, np.ndarray]:
    file = work / "output.npy"
    if not peer.parts:
        return {}
    orders: dict[str, Mapping[str, Any]] = {"logits": {"prompt": CHECKED_PROMPT}}
    if peer.asks:
        orders["features"] = {"pixels": str(pixels)}
    made = {}
    for order, more in orders.items():
        _order(engine, order, out=str(file), **more)
        made[order] = np.load(file).reshape(-1).astype(np.float64)
    return made


def _compare_outputs(found: Mapping[str, Found], outputs: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    for name, arrays in outputs.items():
        for kind, array in arrays.items():
            reference = outputs.get(TORCH, {}).get(kind)
            if reference is not None:
                found[name].errors[kind] = float(np.linalg.norm(array - reference) / np.linalg.norm(reference))


def disagreements(found: Mapping[str, Found], *, exact: bool) -> list[str]:
    """Engines and outputs that are too far from transformers' for a rounding to be the reason: other weights or inputs.

    exact: at full precision every output counts; else features alone, since rounding a decoder of random weights to 4 bits moves
    its logits far.
    """
    limits = dict.fromkeys(("features", "logits"), MOST_DIFFERENCE) if exact else {"features": MOST_ROUNDING}
    return [
        f"{name} ({kind} {error:.1e})"
        for name, each in found.items() for kind, error in each.errors.items() if not error <= limits.get(kind, error)
    ]  # fmt: skip


def _bandwidth(threads: int) -> float:
    reader = Engine("bandwidth", [sys.executable, "-m", "benchmarks.memory_read", str(threads)], threads)
    read = float(reader.ask("read"))
    reader.close()
    return read


def _about(arguments: argparse.Namespace) -> str:
    title = (__doc__ or "").splitlines()[0].rstrip(".")
    options = f"--threads {arguments.threads} --repeats {arguments.repeats}{' --fp32' if arguments.fp32 else ''}"
    command = (
        f"python -m benchmarks.peers.compare CHECKPOINT BUNDLE --openvino PYTHON --llama PYTHON --out OUT {options}"
    )
    return (
        f"# {title}\n\n`{command}`\n\n{arguments.checkpoint.name}, {datetime.date.today()}, "
        f"{cpu_name()}, {arguments.threads} threads, Python {platform.python_version()}. Medians of {arguments.repeats}, "
        f"{NEW_TOKENS} tokens decoded, an image of {IMAGE_PX[0]} x {IMAGE_PX[1]} px."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="exported and quantized from it, with a tower in fp32")
    parser.add_argument("--openvino", type=Path, help="interpreter of the environment that has OpenVINO GenAI")
    parser.add_argument("--llama", type=Path, help="interpreter of the environment that has llama.cpp")
    parser.add_argument("--out", type=Path, required=True, help="where OUT.md and OUT.png go")
    parser.add_argument("--models", type=Path, help="folder to keep the peers' models in, and to look for them")
    parser.add_argument("--only", action="append", help="an engine's name; again for more")
    parser.add_argument("--views", type=int, nargs="+", default=[1, 5], help="views in a call of the tower")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fp32", action="store_true")
    main(parser.parse_args())
