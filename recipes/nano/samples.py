"""Draws the pages under calibration/pages: python -m recipes.nano.samples calibration/pages

`receipt` is the page of the README: over 1,200 px wide, with a total, one circle, and more text than six tiles can cover. The
others are for calibration and parity. Each picture has a JSON file with questions and true answers.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from .fonts import check_fonts
from .pages import VIEW_PX, Page, Style, draw_page
from .questions import box_text
from .vocabulary import PLURALS, SHAPES

SEED = 2_000_000
MAX_PNG_BYTES = 220_000
CAPACITY_PX2 = 6 * VIEW_PX * VIEW_PX


def is_receipt(page: Page) -> bool:
    """A large, crowded page with a total, a date, one circle, and every line inside the page."""
    keys = {line.key for line in page.lines}
    circles = sum(shape.kind == "circle" for shape in page.shapes)
    inside = all(line.box[2] <= page.width for line in page.lines)
    light = page.image.mean() > 180
    return (
        {"total", "date"} <= keys
        and circles == 1
        and inside
        and light
        and page.text_px2 > CAPACITY_PX2
        and page.width > 1200
    )


def questions(page: Page) -> list[dict[str, str]]:
    """Every line's value, every shape's count, and colour and place of shapes that occur once."""
    asked = [
        {"task": "value", "question": f"what is the {line.key}?", "answer": line.value}
        for line in page.lines
        if line.box[2] <= page.width
    ]
    for kind in SHAPES:
        own = [shape for shape in page.shapes if shape.kind == kind]
        asked.append({"task": "count", "question": f"how many {PLURALS[kind]} are there?", "answer": str(len(own))})
        if len(own) == 1:
            asked.append({"task": "color", "question": f"what color is the {kind}?", "answer": own[0].color})
            asked.append({"task": "where", "question": f"where is the {kind}?", "answer": box_text(own[0], page)})
    return asked


def png_bytes(page: Page) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(page.image).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def make(out: Path) -> None:
    check_fonts()
    out.mkdir(parents=True, exist_ok=True)
    wanted = {"receipt": is_receipt} | {f"page{i}": lambda page: page.width < 900 for i in range(1, 5)}
    seed = 0
    for name, accept in wanted.items():
        style = Style(min_side_px=1000) if name == "receipt" else Style()
        while True:
            page = draw_page(np.random.default_rng((SEED, seed)), style)
            seed += 1
            if accept(page) and len(encoded := png_bytes(page)) <= MAX_PNG_BYTES:
                break
        (out / f"{name}.png").write_bytes(encoded)
        entry = {
            "image": f"{name}.png",
            "seed": [SEED, seed - 1],
            "size": [page.width, page.height],
            "questions": questions(page),
        }
        (out / f"{name}.json").write_text(json.dumps(entry, indent=1) + "\n")
        print(name, page.width, page.height, len(encoded))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    make(parser.parse_args().out)
