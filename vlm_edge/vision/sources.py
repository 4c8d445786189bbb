"""Image sources: a file, stream or array that claims to be an image -> RGB uint8 [H, W, 3], or BadImage."""

from __future__ import annotations

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, cast
from weakref import WeakKeyDictionary

import numpy as np
import PIL.WebPImagePlugin  # noqa: F401  registers WebP; without it Image.open imports every plugin there is to find it
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from vlm_edge.errors import BadImage

DEFAULT_MAX_PIXELS = 400_000_000
MAX_STREAM_BYTES = 2 << 30
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
Rgb = NDArray[np.uint8]
Encoded = str | os.PathLike[str] | bytes | BinaryIO
Source = Encoded | Image.Image | NDArray[Any]
_BAND_PX = 1 << 20
_MAX_RLE_PX = 8_000_000  # Pillow expands run-length-coded BMP in Python, where two bytes can ask for a whole row
_SMALLER = "scale it down, or raise --max-pixels if the file is trusted and memory allows"
_BITS_PER_SAMPLE, _PHOTOMETRIC, _ORIENTATION = 258, 262, 274  # TIFF and EXIF tags
# what Pillow's plugins let out on damaged files (subclasses included), and what it means where that is known
_FAILURES = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, AssertionError,
    RuntimeError, EOFError, MemoryError, BufferError, SystemError, ImportError, struct.error, zlib.error,
    Image.DecompressionBombError)  # fmt: skip
_REASONS: tuple[tuple[type[Exception], str, str], ...] = (
    (FileNotFoundError, "does not exist", "check the path"),
    (PermissionError, "may not be read by this user", "grant read permission, for instance with chmod u+r"),
    (UnidentifiedImageError, f"is no {'/'.join(FORMATS)} image, or its header is damaged", "convert it to PNG or JPEG"),
    (Image.DecompressionBombError, "is too large: {}", _SMALLER),
    (MemoryError, "takes more memory to decode than is free", "scale the image down, or free memory"),
    (Exception, "is damaged or cut short", "copy or export it again, and check that another program opens it"),
)
_PILLOW_LOCK = threading.RLock()  # its pixel limit and the warning filters are global: changed by one at a time
_pipes_read: WeakKeyDictionary[Any, io.BytesIO] = WeakKeyDictionary()  # read once, but wanted by probe and by load


@dataclass(frozen=True)
class ImageHeader:
    """What a file says of itself, unproven: width and height in px after EXIF orientation, Pillow's format and mode.

    progressive: a JPEG whose decoder holds all coefficients at once.  band_px: pixels that are decoded at a time of an image that
    is to be read by parts (see bands.band_px); 0 for one that is read whole.
    """

    width: int
    height: int
    format: str
    mode: str
    progressive: bool = False
    band_px: int = 0


@dataclass(frozen=True, eq=False)
class SourceImage:
    """A decoded image: pixels uint8 RGB [H, W, 3] in full resolution, upright; name is for messages."""

    pixels: Rgb
    name: str
    format: str

    @property
    def width(self) -> int:
        """W in px."""
        return int(self.pixels.shape[1])

    @property
    def height(self) -> int:
        """H in px."""
        return int(self.pixels.shape[0])


def probe(source: Encoded | Image.Image, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> ImageHeader:
    """Size and kind from the header, nothing decoded: what a planner needs to refuse an image.

    source: encoded, as in load_image, or a PIL image.  Raises BadImage without a readable header, or if it says more than
    max_pixels.
    """
    with opened(source, max_pixels) as (image, _):
        width, height = image.size[::-1] if _orientation(image) >= 5 else image.size
        return ImageHeader(width, height, image.format or "", image.mode, bool(image.info.get("progressive")))


def reduction(width: int, height: int, *, at_least_px: int) -> int:
    """By how much a JPEG of that size is divided while it is decoded, so that both sides keep at_least_px: 1, 2, 4 or 8."""
    room = min(width, height) // max(1, at_least_px)
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(1, room))


def load_image(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> SourceImage:
    """Any accepted image -> RGB uint8 [H, W, 3], upright, first frame or page, transparency over white; or BadImage.

    source: a path ("-" is standard input), encoded bytes, a binary stream (read from its start, left open), a PIL image
    (its current frame) or a uint8 array [H, W, 3] or [H, W]; an array that is RGB and contiguous is shared, not copied.
    Grey of more than 8 bits is scaled linearly: 16-bit, and int32 within 0..65535, from the full range (v / 257); other
    int32 and all float32 from the image's own minimum..maximum; an image of one value becomes black.
    max_pixels is held against the header before anything is decoded.  Peak memory: 4 bytes per pixel in Pillow, 3 in
    the result, and a band of rows; only the decoders of WebP (16 bytes per pixel) and progressive JPEG take more.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.shape[2:] not in ((), (3,)) or source.ndim < 2:
            raise BadImage(f"{source.dtype} array {source.shape} is not uint8 [H, W, 3] or [H, W]", remedy="convert it")
        _check_size(source.shape[1], source.shape[0], "array", max_pixels)
        rgb = source if source.ndim == 3 else np.dstack([source] * 3)
        return SourceImage(np.ascontiguousarray(rgb), "array", "array")
    with opened(source, max_pixels) as (image, name):
        return SourceImage(_decode(image, name), name, image.format or "memory")


def load_reduced(source: Source, *, at_least_px: int, max_pixels: int = DEFAULT_MAX_PIXELS) -> Rgb:
    """For a global view -> uint8 RGB [h, w, 3]: a JPEG at 1, 1/2, 1/4 or 1/8 of its size, anything else in full.

    at_least_px: the short side of the result is no smaller than that, unless the image is.  JPEG is scaled in its DCT,
    for a fraction of the time and memory of a full decode.  Raises BadImage as load_image does.
    """
    if isinstance(source, np.ndarray | Image.Image):  # a draft would change the caller's image
        return load_image(source, max_pixels=max_pixels).pixels
    with opened(source, max_pixels) as (image, name):
        image.draft(None, (max(1, at_least_px), max(1, at_least_px)))
        return _decode(image, name)


@contextmanager
def open_stream(source: Source) -> Iterator[IO[bytes]]:
    """The encoded bytes as a seekable stream at its start; a pipe is remembered, to be read again. Raises BadImage."""
    name = _name(source)
    with ExitStack() as stack:
        try:
            yield io.BytesIO() if isinstance(source, Image.Image) else _stream(source, name, stack)
        except _FAILURES as error:
            _, what, remedy = next(reason for reason in _REASONS if isinstance(error, reason[0]))
            raise BadImage(f"{name} {what.format(str(error).partition(',')[0])}", remedy=remedy) from error


@contextmanager
def opened(source: Source, max_pixels: int) -> Iterator[tuple[Image.Image, str]]:
    """An image with its header read and its size allowed, and its name; what fails in the body becomes BadImage too."""
    name = _name(source)
    with _PILLOW_LOCK, warnings.catch_warnings(), open_stream(source) as stream, ExitStack() as stack:
        warnings.simplefilter("ignore")
        stack.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        # not off: the WebP and GIF plugins allocate while opening, before the check below. Its error begins at twice it
        Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
        if isinstance(source, Image.Image):
            image: Image.Image = source
        elif not stream.read(1):
            raise BadImage(f"{name} is empty", remedy="copy or export it again")
        else:
            image = stack.enter_context(Image.open(stream, formats=FORMATS))
            if isinstance(image, TiffImageFile):
                # by an orientation in there Pillow would turn the pixels, but not the size that the header has
                image.info.pop("xmp", None)
            if image.width * image.height > _MAX_RLE_PX and any(tile[0] == "bmp_rle" for tile in image.tile):
                raise BadImage(f"{name} is a run-length-coded BMP of over {_MAX_RLE_PX} px", remedy="convert it to PNG")
        _check_size(image.width, image.height, name, max_pixels)
        yield image, name


def _name(source: object) -> str:
    if not isinstance(source, str | os.PathLike):
        named = getattr(source, "filename", getattr(source, "name", None))
        return named if isinstance(named, str) and named else f"image from {type(source).__name__}"
    text = str(source)
    return "standard input" if text == "-" else text if text and text.isprintable() else repr(text)


def _stream(source: Source, name: str, stack: ExitStack) -> IO[bytes]:
    if isinstance(source, bytes | bytearray | memoryview):
        return io.BytesIO(source)
    if isinstance(source, str | os.PathLike) and source != "-":
        path = Path(source)
        if path.exists() and not path.is_file():  # to open a named pipe could wait for ever
            raise BadImage(f"{name} is a folder or device, not a file", remedy="name an image file; for a pipe, name -")
        return stack.enter_context(path.open("rb"))
    stream: Any = sys.stdin.buffer if source == "-" else source
    if not hasattr(stream, "read"):
        raise BadImage(f"{name} is no image source", remedy="give a path, bytes, a binary stream, an image or an array")
    if not (hasattr(stream, "seekable") and stream.seekable()):
        if stream not in _pipes_read:
            copy = io.BytesIO()
            while chunk := stream.read(1 << 20):
                copy.write(chunk)
                if copy.tell() > MAX_STREAM_BYTES:
                    raise BadImage(f"{name} is longer than {MAX_STREAM_BYTES} bytes", remedy="save it as a file first")
            _pipes_read[stream] = copy
        stream = _pipes_read[stream]
    stream.seek(0)
    return cast("IO[bytes]", stream)


def _check_size(width: int, height: int, name: str, max_pixels: int) -> None:
    if (pixels := width * height) > max_pixels:
        raise BadImage(f"{name} is {width} x {height} = {pixels} px; the limit is {max_pixels}", remedy=_SMALLER)
    if pixels < 1:
        raise BadImage(f"{name} has no pixels ({width} x {height})", remedy="use an image of at least 1 x 1 px")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8 that is still to be applied; 1 if the EXIF block is damaged: the pixels are not."""
    try:
        # Pillow turns TIFF itself. Not image.getexif(): that of PNG decodes the pixels in search of a later EXIF chunk
        value: Any = 1 if isinstance(image, TiffImageFile) else Image.Image.getexif(image).get(_ORIENTATION)
    except _FAILURES:
        return 1
    return int(value) if value in range(1, 9) else 1


def _decode(image: Image.Image, name: str) -> Rgb:
    """Decode, then convert and turn band by band into the result, so that no third full-size copy arises."""
    orientation = _orientation(image)
    image.load()
    black_white = _grey_range(image) if image.mode[0] in "IF" else None
    width, height = image.size
    pixels = np.empty((width, height, 3) if orientation >= 5 else (height, width, 3), np.uint8)
    as_stored = pixels.swapaxes(0, 1) if orientation >= 5 else pixels  # a view: what is written to it comes out upright
    as_stored = as_stored[:: -1 if orientation in (3, 4, 6, 7) else 1, :: -1 if orientation in (2, 3, 7, 8) else 1]
    rows = max(1, _BAND_PX // width)
    for y in range(0, height, rows):
        band = image.crop((0, y, width, min(y + rows, height)))
        as_stored[y : y + rows] = _scaled_grey(band, *black_white, name) if black_white else as_rgb(band)
    return pixels


def as_rgb(band: Image.Image) -> Rgb:
    """A decoded image of up to 8 bits a sample as uint8 RGB [H, W, 3], transparency over white."""
    if not band.has_transparency_data:
        return np.asarray(band.convert("RGB"))
    band = (band.convert("LA") if band.mode == "La" else band).convert("RGBA")  # La has no direct way to RGBA
    return np.asarray(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"))


def _grey_range(image: Image.Image) -> tuple[float, float]:
    """The values that become 0 and 255 in an image of mode I;16*, I or F."""
    tags: Any = image.tag_v2 if isinstance(image, TiffImageFile) else {}
    low, high = 0.0, 2.0 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1  # the 12 bits of some TIFF have mode I;16 too
    if image.mode in ("I", "F"):
        ends = cast("tuple[float, float]", image.getextrema())
        low, high = (0.0, 65535.0) if image.mode == "I" and ends[0] >= 0 and ends[1] <= 65535 else ends
    return (high, low) if tags.get(_PHOTOMETRIC) == 0 else (low, high)  # 0 is white: Pillow inverts only up to 8 bits


def _scaled_grey(band: Image.Image, black: float, white: float, name: str) -> Rgb:
    values = np.asarray(band)
    if not np.isfinite(values).all():
        raise BadImage(f"{name} has values that are NaN or infinite", remedy="replace them, or save it in 8 bits")
    grey = np.rint((values.astype(np.float64) - black) / (white - black or 1.0) * 255).clip(0, 255).astype(np.uint8)
    grey[values == band.info.get("transparency")] = 255
    return grey[:, :, None]
