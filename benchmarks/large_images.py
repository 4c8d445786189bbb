"""Peak memory of a question about an image of 2 to 400 megapixels, each in a process of its own, beside its plan.

python -m benchmarks.large_images [--most MEGAPIXELS] [--tiling none]
The same page over and over as PNG; the column `whole` is what decoding all of it would be planned with.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.measured_child import measured
from benchmarks.saliency_hits import MEGAPIXELS, write_png
from vlm_edge.memory.formulas import image_decode_bytes
from vlm_edge.units import MIB

PAGE = Path(__file__).parents[1] / "calibration/pages/receipt.png"
QUESTION = "what is the total?"


def main() -> None:
    """Write the images one at a time and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=400, help="largest image in megapixels")
    parser.add_argument("--tiling", default="auto")
    options = parser.parse_args()
    page = np.asarray(Image.open(PAGE).convert("RGB"))
    print("| megapixels | planned peak, MiB | measured peak, MiB | decoded whole, MiB | seconds | tiles |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for megapixels, size in MEGAPIXELS.items():
            if megapixels > options.most:
                continue
            path = Path(folder) / f"{megapixels}.png"
            write_png(path, size, page)
            peak, seconds, report = measured(
                "run", str(path), QUESTION, "--tiling", options.tiling, "--threads", "1", "--max-pixels", str(1 << 29)
            )
            path.unlink()
            planned = report["memory"]["planned_peak_bytes"]
            whole = image_decode_bytes(pixels=size[0] * size[1], file_format="PNG")
            figures = [f"{count / MIB:.0f}" for count in (planned, peak, whole)]
            print(f"| {megapixels} | {' | '.join(figures)} | {seconds:.1f} | {len(report['tiles'])} |", flush=True)


if __name__ == "__main__":
    main()
