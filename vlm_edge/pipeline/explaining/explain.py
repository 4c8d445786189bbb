"""`run --explain`: what the model was shown and what became of it, as a picture or as a page that holds everything."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.answering.question_plan import source_header
from vlm_edge.pipeline.explaining.picture import SOURCE_PX, compose, summary
from vlm_edge.pipeline.written import check_output, written
from vlm_edge.units import format_bytes
from vlm_edge.vision import sources
from vlm_edge.vision.raster import FileRaster, Picture
from vlm_edge.vision.sources import Source

SUFFIXES = (".png", ".html")
ANY_PIXELS = 1 << 40
"""Whatever has been answered about has passed the run's own limit."""
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;color:#1c2024;margin:24px auto;max-width:1500px;padding:0 24px}"
    "h1{font-size:1.3em;margin:0}h2{font-size:1.05em;margin:1.6em 0 .4em}pre{font:inherit;white-space:pre-wrap;"
    "overflow-wrap:anywhere;background:#f1f3f5;padding:12px 16px;margin:.6em 0}p{color:#5c6468;margin:.4em 0}"
    "img{max-width:100%;height:auto;border:1px solid #c8ccd0}table{border-collapse:collapse}"
    "th,td{padding:3px 18px 3px 0;text-align:right;font-variant-numeric:tabular-nums}"
    "th:first-child,td:first-child{text-align:left}th{font-weight:600;border-bottom:1px solid #c8ccd0}"
    ".tables{display:flex;flex-wrap:wrap;gap:0 64px}"
)


def check_target(path: Path, images: Sequence[object] = ()) -> None:
    """Raise BadInput unless `path` can become a .png or .html file and is none of `images`."""
    check_output(path, SUFFIXES, named=f"--explain {path}", example="seen")
    if any(_is_same_file(path, image) for image in images):
        raise BadInput(f"--explain {path} would overwrite the image", remedy="give it another name")


def _is_same_file(path: Path, image: object) -> bool:
    try:
        return isinstance(image, str | os.PathLike) and path.samefile(image)
    except (OSError, ValueError):
        return False


def explain_answer(image: Source, answer: Answer, path: Path, *, geometry: TokenGeometry, question: str) -> None:
    """Draw an answer's first image with tiles, boxes and tokens; `path` is replaced as a whole or not at all.

    image: what `Pipeline.ask` was given first; standard input and pipes are remembered from then.
    Raises BadInput, BadImage.
    """
    check_target(path, [image])
    pixels, size = _load(image, full=bool(answer.tiles))
    is_page = path.suffix.lower() == ".html"
    picture = io.BytesIO()
    compose(pixels, size, answer, geometry=geometry, question=None if is_page else question).save(picture, "PNG")
    content = _page(picture.getvalue(), answer, question).encode(errors="replace") if is_page else picture.getvalue()
    with written(path, named=f"--explain {path}", remedy="free space, or name another place") as stream:
        stream.write(content)


def _load(image: Source, *, full: bool) -> tuple[Picture, tuple[int, int]]:
    """An image's pixels and (width, height): by parts where a run reads it so; without tiles nothing needs a large JPEG in full."""
    if isinstance(image, np.ndarray | Image.Image):
        source = sources.load_image(image, max_pixels=ANY_PIXELS)
        return source.pixels, (source.width, source.height)
    header = source_header(image, ANY_PIXELS)
    size = header.width, header.height
    if header.band_px:
        return FileRaster(image, *size, ANY_PIXELS), size
    if full:
        return sources.load_image(image, max_pixels=ANY_PIXELS).pixels, size
    return sources.load_reduced(image, at_least_px=SOURCE_PX, max_pixels=ANY_PIXELS), size


def _page(picture: bytes, answer: Answer, question: str) -> str:
    """A file that needs no other: the picture is a data URI, and every text is escaped."""
    data = base64.b64encode(picture).decode("ascii")
    tiles = [
        (str(i), ", ".join(map(str, tile.box)), f"{tile.score:.4g}") for i, tile in enumerate(answer.tiles, start=1)
    ]
    boxes = [(item.label or "-", ", ".join(map(str, item.box)), "yes" * item.clipped) for item in answer.boxes]
    points = [(item.label or "-", ", ".join(map(str, item.point)), "yes" * item.clipped) for item in answer.points]
    counts = answer.tokens
    tokens = [
        ("visual, before reduction", counts.visual_before),
        ("visual, in the prompt", counts.visual_after),
        ("prompt in all", counts.prompt),
        ("generated", counts.generated),
    ]
    memory = [("planned peak", answer.planned_peak_bytes), ("measured peak", answer.measured_peak_bytes)]
    tables = [
        _table("Tiles", ("tile", "box (x0, y0, x1, y1) in px", "score"), tiles),
        _table("Boxes in the answer", ("label", "box (x0, y0, x1, y1) in px", "clipped"), boxes),
        _table("Points in the answer", ("label", "point (x, y) in px", "clipped"), points),
        _table("Tokens", ("kind", "tokens"), [(name, str(value)) for name, value in tokens]),
        _table("Times", ("step", "ms"), [(name, f"{value:.1f}") for name, value in answer.timings_ms.items()]),
        _table("Memory", ("kind", "size"), [(name, format_bytes(value)) for name, value in memory]),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>vlm-edge: what the model saw</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>What the model saw</h1>\n"
        f"<h2>Question</h2><pre>{escape(question)}</pre>\n<h2>Answer</h2><pre>{escape(answer.text)}</pre>\n"
        f"<p>{escape(summary(answer))}</p>\n"
        f'<img alt="the image with its tiles, and each view with its tokens" src="data:image/png;base64,{data}">\n'
        f'<div class="tables">\n{"".join(tables)}</div>\n</body></html>\n'
    )


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Nothing at all without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div><h2>{escape(title)}</h2><table><tr>{head}</tr>{body}</table></div>\n"
