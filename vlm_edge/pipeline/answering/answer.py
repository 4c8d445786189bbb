"""What `run` returns: text, boxes in source pixels, counts, times and memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_edge.vision.grounding import LabelledBox, LabelledPoint
from vlm_edge.vision.tiling import Tile


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
    points: tuple[LabelledPoint, ...]
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
    other_tiles: tuple[tuple[Tile, ...], ...] = field(default=(), repr=False)
    """Of the second image and those behind it, each in its own pixels."""

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
            "tiles": _plain(self.tiles),
            **({"tiles_of_other_images": [_plain(tiles) for tiles in self.other_tiles]} if self.other_tiles else {}),
            "boxes": [{"label": item.label, "box": list(item.box), "clipped": item.clipped} for item in self.boxes],
            "points": [
                {"label": item.label, "point": list(item.point), "clipped": item.clipped} for item in self.points
            ],
            "timings_ms": {name: round(value, 2) for name, value in self.timings_ms.items()},
            "memory": {"planned_peak_bytes": self.planned_peak_bytes, "measured_peak_bytes": self.measured_peak_bytes},
            "stop_reason": self.stop_reason,
            "bundle": self.bundle,
            "device": self.device,
        }


def _plain(tiles: Sequence[Tile]) -> list[dict[str, Any]]:
    return [{"box": list(tile.box), "score": round(tile.score, 3)} for tile in tiles]
