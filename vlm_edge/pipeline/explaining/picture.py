"""The picture behind `run --explain`: the source with tiles and boxes, every view with its tokens, and the words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.layout import Box
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.explaining.density import density_panel
from vlm_edge.pipeline.explaining.lettering import Letters, shortened, wrap
from vlm_edge.pipeline.explaining.view_panels import INK, OUTLINE, at_size, view_panels
from vlm_edge.tokens.positions import DROPPED
from vlm_edge.vision.grounding import LabelledBox, LabelledPoint
from vlm_edge.vision.raster import Picture

Colour = tuple[int, int, int]

# Vermillion and blue of Okabe and Ito's palette, which colour-blind readers tell apart as well.
TILE: Colour = (213, 94, 0)
BOX: Colour = (0, 114, 178)
PAPER: Colour = (255, 255, 255)
STRIP: Colour = (241, 243, 245)
FAINT: Colour = (92, 100, 108)
FRAME: Colour = (200, 204, 208)

SOURCE_PX, LEAST_SOURCE_PX = 1400, 560
LEAST_WIDTH_PX = 900
MARGIN_PX, GAP_PX = 24, 16
TEXT_PX, SMALL_PX, BADGE_PX, RING_PX = 21, 15, 22, 12
MAX_LABEL_PX, MAX_TEXT_LINES = 260, 8
SCREEN = (16, 10)
FULL_SIZE_WIDTH_PX = 1500
"""Text in the strip grows with pages that are wider than this, since they will be shown smaller."""


@dataclass(frozen=True)
class Layout:
    """Where the views go: in how many columns, and to the right of the source or below it."""

    columns: int
    below: bool


def compose(
    pixels: Picture, source_px: tuple[int, int], answer: Answer, *, geometry: TokenGeometry, question: str | None
) -> Image.Image:
    """Source and views beside each other, or below each other where that saves much room, under a strip with the words.

    pixels: RGB uint8 [H, W, 3], of full size where the answer has tiles, or a raster.  source_px: (width, height) of its boxes.
    question: None leaves question and answer out, for a page that has them as text.
    """
    source = source_panel(pixels, source_px, answer)
    panels = view_panels(pixels, answer, geometry)
    if answer.members:
        panels.append(density_panel(pixels, source_px, answer, geometry, longest_px=panels[0].width))
    layout = choose_layout(source.size, panels[0].size, len(panels))
    views = _sheet(panels, layout.columns)
    at = (0, source.height + MARGIN_PX) if layout.below else (source.width + MARGIN_PX, 0)
    width = max(LEAST_WIDTH_PX, source.width, at[0] + views.width)
    strip = _strip(answer, question, width)
    top = strip.height + MARGIN_PX
    height = top + max(source.height, at[1] + views.height) + MARGIN_PX
    page = Image.new("RGB", (width + 2 * MARGIN_PX, height), PAPER)
    page.paste(STRIP, (0, 0, page.width, strip.height))
    page.paste(strip, (MARGIN_PX, 0))
    page.paste(source, (MARGIN_PX, top))
    page.paste(views, (MARGIN_PX + at[0], top + at[1]))
    return page


def choose_layout(source: tuple[int, int], view: tuple[int, int], count: int) -> Layout:
    """The layout that a screen shows largest; of equals, views at the side.  source and view: (width, height) in px."""

    def screen(layout: Layout) -> float:
        width = layout.columns * (view[0] + GAP_PX)
        height = -(-count // layout.columns) * (view[1] + GAP_PX)
        if layout.below:
            width, height = max(source[0], width), source[1] + height
        else:
            width, height = source[0] + width, max(source[1], height)
        return max(width / SCREEN[0], height / SCREEN[1])

    return min((Layout(columns, below) for below in (False, True) for columns in range(1, count + 1)), key=screen)


def shown_scale(width: int, height: int) -> float:
    """Shown pixels per source pixel: large images shrink to SOURCE_PX, small ones grow by a whole factor."""
    longest = max(width, height)
    return SOURCE_PX / longest if longest > SOURCE_PX else max(1, LEAST_SOURCE_PX // longest)


def source_panel(pixels: Picture, source_px: tuple[int, int], answer: Answer) -> Image.Image:
    """The source with its tiles numbered in reading order, and the answer's boxes and points; framed by 1 px."""
    scale = shown_scale(*source_px)
    width, height = (max(1, round(side * scale)) for side in source_px)
    method = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC
    shown = at_size(pixels, (width, height), method)
    draw = ImageDraw.Draw(shown)
    tiles = [_scaled(tile.box, scale) for tile in answer.tiles]
    for box in tiles:
        _outline(draw, box, TILE, 3)
    for item in answer.boxes:
        _outline(draw, _scaled(item.box, scale), BOX, 4)
    # Words come after all outlines, so that none runs through a number.
    for number, box in enumerate(tiles, start=1):
        _badge(draw, width, box, Letters(str(number), 17), TILE)
    for item in answer.boxes:
        if words := _words(item):
            _badge(draw, width, _scaled(item.box, scale), shortened(words, 17, MAX_LABEL_PX), BOX)
    for place in answer.points:
        x, y = (round(value * scale) for value in place.point)
        _ring(draw, (x, y))
        if words := _words(place):
            below = y + RING_PX + BADGE_PX
            at = below if below <= height else y - RING_PX
            _badge(draw, width, (x, at, x, at), shortened(words, 17, MAX_LABEL_PX), BOX)
    framed = Image.new("RGB", (width + 2, height + 2), FRAME)
    framed.paste(shown, (1, 1))
    return framed


def _words(item: LabelledBox | LabelledPoint) -> str:
    """The label, and that the place was clipped."""
    return " ".join(filter(None, (item.label, "(clipped)" * item.clipped)))


def _scaled(box: Sequence[int], scale: float) -> Box:
    """A box in shown pixels, its last row and column included; never inside out, however small it becomes."""
    x0, y0, x1, y1 = (round(edge * scale) for edge in box)
    return x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)


def _outline(draw: ImageDraw.ImageDraw, box: Box, colour: Colour, width: int) -> None:
    """Along the inside of a box, with a pale line round it that sets it off dark images."""
    draw.rectangle((box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1), outline=PAPER)
    draw.rectangle(box, outline=colour, width=width)


def _ring(draw: ImageDraw.ImageDraw, at: tuple[int, int]) -> None:
    for radius, colour, width in ((RING_PX, PAPER, 7), (RING_PX - 1, BOX, 4)):
        draw.ellipse((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius), outline=colour, width=width)


def _badge(draw: ImageDraw.ImageDraw, limit_px: int, box: Box, letters: Letters, colour: Colour) -> None:
    """A filled label at a box's upper left corner: above the box, or inside it where there is no room above."""
    width = letters.width + 10
    x = max(0, min(box[0], limit_px - width))
    y = box[1] - BADGE_PX if box[1] >= BADGE_PX else box[1]
    draw.rectangle((x, y, x + width - 1, y + BADGE_PX - 1), fill=colour)
    letters.draw(draw, (x + 5, y), PAPER)


def _sheet(panels: Sequence[Image.Image], columns: int) -> Image.Image:
    width, height = (max(sizes) + GAP_PX for sizes in zip(*(panel.size for panel in panels), strict=True))
    rows = -(-len(panels) // columns)
    sheet = Image.new("RGB", (columns * width - GAP_PX, rows * height - GAP_PX), PAPER)
    for i, panel in enumerate(panels):
        sheet.paste(panel, (i % columns * width, i // columns * height))
    return sheet


def _strip(answer: Answer, question: str | None, width: int) -> Image.Image:
    """Question, answer, counts and a legend, on as many lines as they need."""
    scale = max(1.0, width / FULL_SIZE_WIDTH_PX)
    text_px, small_px = round(TEXT_PX * scale), round(SMALL_PX * scale)
    rows: list[tuple[Letters, Colour, int]] = []
    for name, text in (("question", question), ("answer", answer.text)) if question is not None else ():
        rows.append((Letters(name, small_px), FAINT, small_px + 5))
        rows += [(line, INK, text_px + 8) for line in wrap(text or "", text_px, width, max_lines=MAX_TEXT_LINES)]
    counts = wrap(summary(answer), small_px, width, max_lines=MAX_TEXT_LINES)
    rows += [(line, FAINT, small_px + 7) for line in counts]
    strip = Image.new("RGB", (width, 14 + sum(step for *_, step in rows) + small_px + 22), STRIP)
    draw = ImageDraw.Draw(strip)
    y = 14
    for letters, colour, step in rows:
        letters.draw(draw, (0, y), colour)
        y += step
    _legend(draw, y + 4, small_px, answer)
    return strip


def summary(answer: Answer) -> str:
    """Counts, time and place on one line."""
    counts = answer.tokens
    parts = [
        f"{len(answer.tiles)} {'tile' if len(answer.tiles) == 1 else 'tiles'}",
        f"{counts.visual_before} -> {counts.visual_after} visual tokens",
        f"{counts.prompt} tokens in the prompt",
        f"{counts.generated} generated ({answer.stop_reason})",
    ]
    parts += [f"{answer.timings_ms['total']:.0f} ms"] if "total" in answer.timings_ms else []
    return " | ".join([*parts, f"{answer.bundle} on {answer.device}"])


def _legend(draw: ImageDraw.ImageDraw, y: int, size_px: int, answer: Answer) -> None:
    """Only what the picture holds."""
    entries = [("tile, in reading order", TILE)] if answer.tiles else []
    entries += [("place that the answer names", BOX)] if answer.boxes or answer.points else []
    entries += [(_legend_of_tokens(answer), OUTLINE)] if answer.members else []
    x = 0
    for text, colour in entries:
        draw.rectangle((x, y + 2, x + size_px, y + 2 + size_px), outline=colour, width=3)
        letters = Letters(text, size_px)
        letters.draw(draw, (x + size_px + 8, y), FAINT)
        x += size_px + letters.width + 36


def _legend_of_tokens(answer: Answer) -> str:
    dropped = any(DROPPED in view for view in answer.members)
    merged = any(len({*view} - {DROPPED}) < len(view) - view.count(DROPPED) for view in answer.members)
    return "one visual token" + merged * "; tinted: several merged into one" + dropped * "; hatched: dropped"
