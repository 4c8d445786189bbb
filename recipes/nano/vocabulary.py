"""What the nano model can read and say: keys, characters, shapes, colours, and the grid of locations."""

from __future__ import annotations

KEYS = (
    "total", "date", "id", "name", "tax", "city", "qty", "code",
    "price", "ref", "phone", "time", "room", "zip", "gate", "seat",
)  # fmt: skip
CHARACTERS = "0123456789.-abcdefghijklmnopqrstuvwxyz"
SHAPES = ("circle", "square", "triangle", "cross")
PLURALS = {"circle": "circles", "square": "squares", "triangle": "triangles", "cross": "crosses"}
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (240, 210, 40),
    "purple": (130, 50, 170),
    "orange": (245, 130, 30),
    "black": (20, 20, 20),
    "cyan": (40, 200, 215),
}
MAX_COUNT = 5
LOCATION_STEP = 10
LOCATIONS = tuple(range(LOCATION_STEP, 1000, LOCATION_STEP))
"""Box coordinates in thousandths of the image's width or height; two or three digits, so never a character token."""

NOT_VISIBLE = "not visible"
UNSUPPORTED = "cannot answer"


def location_index(value: float, extent: float) -> int:
    """Index into LOCATIONS of a pixel coordinate on an axis that is `extent` px long."""
    step = round(value / extent * 1000 / LOCATION_STEP)
    return min(max(step, 1), len(LOCATIONS)) - 1
