"""Peak memory and time of `vlm-edge export` on checkpoints of real sizes, beside the fp32 bytes of what is exported.

python -m benchmarks.shapes make llava-1.5-7b /tmp/llava-1.5-7b
python -m benchmarks.full_size_export /tmp/llava-1.5-7b [MORE...] [--dtype fp32]

Each export runs in a process of its own; the peak is its resident set (VmHWM), interpreter and libraries included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

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
            peak, seconds, report = export(root, Path(folder) / "out", dtype)
        parity = {row["metric"]: row["value"] for row in report["parity"]}
        print(
            f"| {root.name} | {_gib(stored)} | {_gib(wanted)} | {dtype} | {_gib(peak)} | {peak / wanted:.2f} | {seconds:.0f} s "
            f"| {parity.get('cosine', 0):.6f} | {parity.get('relative_error', 0):.1e} |",
            flush=True,
        )


def export(root: Path, out: Path, dtype: str) -> tuple[int, float, dict[str, list[dict[str, float]]]]:
    """Peak bytes, seconds and the command's own report."""
    command = [sys.executable, "-m", "vlm_edge.cli", "export", str(root), str(out), "--dtype", dtype, "--json"]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(child.returncode)
        output.seek(0)
        return usage.ru_maxrss * 1024, time.perf_counter() - start, json.load(output)


def _gib(count: int) -> str:
    return f"{count / 2**30:.2f} GiB"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, nargs="+")
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "fp16", "int8"))
    arguments = parser.parse_args()
    main(arguments.checkpoint, arguments.dtype)
