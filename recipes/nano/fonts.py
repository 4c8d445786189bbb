"""Typefaces that the page generator draws with.

Every typeface is free; none is stored in the repository. They come from Debian packages, so a machine that
lacks one is told the command that installs it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

FONT_ROOT = Path("/usr/share/fonts/truetype")


@dataclass(frozen=True)
class Typeface:
    """A font file, the Debian package that ships it, its licence, and the sizes (px) at which it is drawn."""

    name: str
    path: str
    package: str
    licence: str
    min_px: int
    max_px: int = 16
    held_out: bool = False


DEJAVU = "Bitstream Vera / public domain"
TYPEFACES: tuple[Typeface, ...] = (
    Typeface("DejaVu Sans Mono", "dejavu/DejaVuSansMono.ttf", "fonts-dejavu-core", DEJAVU, 12),
    Typeface("Liberation Mono", "liberation/LiberationMono-Regular.ttf", "fonts-liberation", "OFL-1.1", 12),
    Typeface("Hack", "hack/Hack-Regular.ttf", "fonts-hack", "MIT and Bitstream Vera", 12),
    Typeface("Noto Sans Mono", "noto/NotoSansMono-Regular.ttf", "fonts-noto-mono", "OFL-1.1", 12),
    Typeface("Fira Code", "firacode/FiraCode-Regular.ttf", "fonts-firacode", "OFL-1.1", 12),
    Typeface("DejaVu Sans", "dejavu/DejaVuSans.ttf", "fonts-dejavu-core", DEJAVU, 12),
    Typeface("Liberation Sans", "liberation/LiberationSans-Regular.ttf", "fonts-liberation", "OFL-1.1", 13),
    Typeface("Liberation Serif", "liberation/LiberationSerif-Regular.ttf", "fonts-liberation", "OFL-1.1", 14),
    Typeface("Roboto", "roboto/unhinted/RobotoTTF/Roboto-Regular.ttf", "fonts-roboto-unhinted", "Apache-2.0", 13),
    Typeface("Open Sans", "open-sans/OpenSans-Regular.ttf", "fonts-open-sans", "Apache-2.0", 13),
    Typeface("Lato", "lato/Lato-Regular.ttf", "fonts-lato", "OFL-1.1", 13),
    Typeface(
        "JetBrains Mono",
        "jetbrains-mono/JetBrainsMono-Regular.ttf",
        "fonts-jetbrains-mono",
        "OFL-1.1",
        12,
        held_out=True,
    ),
    Typeface("Carlito", "crosextra/Carlito-Regular.ttf", "fonts-crosextra-carlito", "OFL-1.1", 14, held_out=True),
)


class FontsMissing(RuntimeError):
    """A typeface of the generator is not installed; the message holds the command that installs it."""


def check_fonts() -> None:
    """Raise FontsMissing when any typeface's file is absent."""
    missing = sorted({face.package for face in TYPEFACES if not (FONT_ROOT / face.path).is_file()})
    if missing:
        raise FontsMissing(f"typefaces are missing; install them with: apt-get install {' '.join(missing)}")


@functools.lru_cache(maxsize=512)
def load_font(name: str, size_px: int) -> ImageFont.FreeTypeFont:
    """The typeface at a pixel size, laid out without ligatures so that one character is one glyph."""
    face = next(face for face in TYPEFACES if face.name == name)
    return ImageFont.truetype(str(FONT_ROOT / face.path), size_px, layout_engine=ImageFont.Layout.BASIC)
