"""Writes the calibration set that ships: python -m recipes.calibration.make calibration/quantize

Every third sample is text alone; the others are pictures in turn. The first N samples are as mixed as all of them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import PIL

from .draw import KINDS
from .texts import PASSAGES

SEED = 4_000_000
PICTURES = 32
JPEG_QUALITY = 88


def make(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    texts = iter(PASSAGES)
    for index in range(PICTURES):
        drawn = KINDS[index % len(KINDS)](np.random.default_rng((SEED, index)))
        name = f"{index:02d}-{KINDS[index % len(KINDS)].__name__}.{'jpg' if drawn.photo else 'png'}"
        if drawn.photo:
            drawn.image.save(out / name, quality=JPEG_QUALITY)
        else:
            drawn.image.quantize(64).save(out / name, optimize=True)
        rows.append({"image": name, "text": drawn.question, "answer": drawn.answer})
        if index % 2:
            rows += [{"text": question, "answer": answer} for question, answer in itertools.islice(texts, 1)]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "samples.jsonl").write_text(lines, "utf-8")
    about = {
        "seed": SEED,
        "pictures": PICTURES,
        "texts": len(PASSAGES),
        "pillow": PIL.__version__,
        "licence": "Apache-2.0",
    }
    (out / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    print(len(rows), "samples,", sum(path.stat().st_size for path in out.iterdir()), "bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)
