"""Peak memory and time of `vlm-edge quantize` through to the int4 ONNX decoder, on checkpoints of real sizes.

python -m benchmarks.shapes make llava-1.1b /tmp/llava-1.1b
python -m benchmarks.full_size_quantize /tmp/llava-1.1b -- --samples 32 --seqlen 640
python -m benchmarks.full_size_quantize /tmp/llava-1.5-7b -- --method rtn --max-memory 4GiB

What follows -- goes to `vlm-edge quantize`. Each run is a process of its own. `peak` is its resident set, interpreter, libraries
and mapped files included; `kept` is without the pages of mapped files, which is what --max-memory limits; the builder that draws
the graph is a second process, which ends before the weights are packed. --keep FOLDER writes into FOLDER/NAME and leaves it
there; a run that was stopped then goes on, and its peak and time are those of the last part.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.measured_child import gib, measured

COLUMNS = (
    "checkpoint", "files", "options", "peak", "kept", "builder", "time", "cosine", "KL", "activations", "decoder",
)  # fmt: skip


def main(checkpoints: list[Path], options: list[str], target: str, keep: Path | None) -> None:
    print(f"| {' | '.join(COLUMNS)} |\n| {' | '.join('---' for _ in COLUMNS)} |", flush=True)
    for root in checkpoints:
        stored = sum(file.stat().st_size for file in root.glob("*.safetensors"))
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            out = Path(folder) / "out" if keep is None else keep / root.name
            peak, seconds, report = measured("quantize", str(root), str(out), "--target", target, *options)
        graph, memory = report["onnx"], report["memory"]
        found = graph["as_run"] or graph["exact"]
        decoder = sum(file["bytes"] for file in report["artifacts"] if file["role"].startswith("llm.graph"))
        row = (
            root.name, gib(stored), " ".join(options), gib(peak), gib(memory["kept_peak_bytes"]), gib(graph["builder_peak_bytes"]),
            f"{seconds:.0f} s", f"{found['cosine']:.6f}", f"{found['kl']:.1e}", graph["activations"], gib(decoder),
        )  # fmt: skip
        print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--target", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--keep", type=Path, metavar="FOLDER")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    arguments = parser.parse_args(given[:end])
    main(arguments.checkpoint, given[end + 1 :], arguments.target, arguments.keep)
