"""Peak memory and time of `vlm-edge export` on checkpoints of real sizes, beside the fp32 bytes of what is exported.

python -m benchmarks.shapes make llava-1.5-7b /tmp/llava-1.5-7b
python -m benchmarks.full_size_export /tmp/llava-1.5-7b [MORE...] [--dtype fp32]

Each export runs in a process of its own; the peak is its resident set (VmHWM), interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.measured_child import gib, measured
from vlm_edge.core import discover


def main(checkpoints: list[Path], dtype: str) -> None:
    print(
        "| checkpoint | files | tower + projector, fp32 | dtype | peak | peak / fp32 | time | cosine | relative error |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for root in checkpoints:
        config = json.loads((root / "config.json").read_text())
        spec = discover.family_of(config).spec(config)
        wanted = 4 * (spec.vision.parameters + spec.projector.parameters)
        stored = sum(file.stat().st_size for file in root.glob("*.safetensors"))
        with tempfile.TemporaryDirectory(dir=root.parent) as folder:
            out = str(Path(folder) / "out")
            peak, seconds, report = measured("export", str(root), out, "--dtype", dtype)
        parity = {row["metric"]: row["value"] for row in report["parity"]}
        print(
            f"| {root.name} | {gib(stored)} | {gib(wanted)} | {dtype} | {gib(peak)} | {peak / wanted:.2f} | {seconds:.0f} s "
            f"| {parity.get('cosine', 0):.6f} | {parity.get('relative_error', 0):.1e} |",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "int8"))
    arguments = parser.parse_args()
    main(arguments.checkpoint, arguments.dtype)
