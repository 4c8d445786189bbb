"""What `run` returns: text, boxes in source pixels, counts, times and memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlm_edge.vision.tiling import Tile

_BOX = re.compile(r"<box>(\d{1,4}),(\d{1,4}),(\d{1,4}),(\d{1,4})</box>")
_POINT = re.compile(r"<point>(\d{1,4}),(\d{1,4})</point>")
GRID = 1000
"""Models write coordinates in thousandths of the image's width and height."""


@dataclass(frozen=True)
class LabelledBox:
    """A box in source pixels and the words that stand before it in the answer."""

    label: str
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class TokenCounts:
    """visual_before and visual_after: image tokens before and after reduction; prompt: all input positions."""

    visual_before: int
    visual_after: int
    prompt: int
    generated: int


@dataclass(frozen=True)
class Answer:
    """One answered question. `tiles` are of the first image; times in milliseconds; memory in bytes."""

    text: str
    tokens: TokenCounts
    tiles: tuple[Tile, ...]
    boxes: tuple[LabelledBox, ...]
    points: tuple[tuple[int, int], ...]
    timings_ms: Mapping[str, float]
    planned_peak_bytes: int
    measured_peak_bytes: int
    stop_reason: str
    bundle: str
    device: str
    members: tuple[tuple[int, ...], ...] = field(default=(), repr=False)
    """Per view of the first image: for each original token, the index of the token that it became, or -1.

    Empty for families whose views have no grid of tokens of their own.
    """
    views: tuple[tuple[int, int, int, int], ...] = field(default=(), repr=False)
    """What each view of the first image shows, in the encoder's order; empty where that is the whole image, then the tiles."""

    def to_json(self) -> dict[str, Any]:
        """The keys that `vlm-edge run --json` prints."""
        counts = self.tokens
        return {
            "answer": self.text,
            "tokens": {
                "visual_before": counts.visual_before,
                "visual_after": counts.visual_after,
                "prompt": counts.prompt,
                "generated": counts.generated,
            },
            "tiles": [{"box": list(tile.box), "score": round(tile.score, 3)} for tile in self.tiles],
            "boxes": [{"label": item.label, "box": list(item.box)} for item in self.boxes],
            "points": [list(point) for point in self.points],
            "timings_ms": {name: round(value, 2) for name, value in self.timings_ms.items()},
            "memory": {"planned_peak_bytes": self.planned_peak_bytes, "measured_peak_bytes": self.measured_peak_bytes},
            "stop_reason": self.stop_reason,
            "bundle": self.bundle,
            "device": self.device,
        }


def find_boxes(text: str, *, width: int, height: int) -> tuple[LabelledBox, ...]:
    """Every `<box>x1,y1,x2,y2</box>` of an answer, scaled to pixels and clipped to the image."""
    found, start = [], 0
    for match in _BOX.finditer(text):
        # Not part of the pattern: a search that begins with "anything" takes the square of the text's length.
        label = re.split("[<>]", text[start : match.start()])[-1].strip()
        start = match.end()
        x0, y0, x1, y1 = map(_to_px, match.groups(), (width, height) * 2)
        found.append(LabelledBox(label, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1))))
    return tuple(found)


def find_points(text: str, *, width: int, height: int) -> tuple[tuple[int, int], ...]:
    """Every `<point>x,y</point>` of an answer in pixels."""
    return tuple((_to_px(match[1], width), _to_px(match[2], height)) for match in _POINT.finditer(text))


def _to_px(value: str, side: int) -> int:
    return min(round(int(value) / GRID * side), side)
