"""How models write places of an image into their answers: what a family declares, and vision/grounding.py reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Syntax = Literal["tags", "pairs", "brackets", "floats", "json", "locations", "points"]
"""The parsers of vision/grounding.py, by name."""
Frame = Literal["image", "view", "canvas"]


@dataclass(frozen=True)
class Dialect:
    """One way to write boxes and points.

    scale: the coordinate that stands for the far edge of the frame.  frame: what coordinates span: the `image`; the `view` of the
    whole image that the encoder saw, its padding included or what was cropped away left out; or the `canvas`, in whose own
    pixels they count (then scale is not read).
    """

    syntax: Syntax
    scale: int
    frame: Frame = "image"


TAGS = Dialect("tags", 1000)
"""`<box>x0,y0,x1,y1</box>`, also with brackets, `<|box_start|>` or a `<ref>` before it, and `<point>x,y</point>`."""
PAIRS = Dialect("pairs", 1000)
"""`cat(x0,y0),(x1,y1)`: what is left of Qwen2-VL's boxes, whose tags are control tokens."""
BRACKETS = Dialect("brackets", 1000)
"""`cat[[x0, y0, x1, y1], ...]`: the same of InternVL's."""
FLOATS = Dialect("floats", 1, "view")
"""`[0.25, 0.1, 0.5, 0.75]`: LLaVA's; it was trained on images padded to a square, so the padding counts."""
JSON_PIXELS = Dialect("json", 0, "canvas")
"""`{"bbox_2d": [x0, y0, x1, y1], "label": "cat"}` and `point_2d`: Qwen2.5-VL's, in pixels of the resized image."""
JSON_THOUSANDTHS = Dialect("json", 1000)
"""The same in thousandths: Qwen3-VL's."""
LOCATIONS = Dialect("locations", 1024)
"""`<locY0><locX0><locY1><locX1> cat ; ...`: PaliGemma's."""
POINTS = Dialect("points", 100)
"""`<point x="61.5" y="40.4" alt="cat">cat</point>`, `<points x1= y1= x2= ...>`: Molmo's, in percent."""
COMMON = (TAGS, POINTS)
"""For families without a dialect of their own: what fine-tuned models of theirs write most."""
