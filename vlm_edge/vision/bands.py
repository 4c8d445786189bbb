"""Reading an image from top to bottom in bands of rows, so that memory does not grow with it where its format allows that.

By parts: PNG of 8 bits a sample that is not interlaced, binary PPM and PGM of 8 bits, and TIFF in strips or rows of tiles.
Whole, then cut: everything else. JPEG is among that: Pillow decodes it in one piece (see sources.load_reduced for a scaled one).

PNG and TIFF are cut before they are decoded: some rows' own bytes, under a header of their own, are a small image of the same
kind, and Pillow decodes it as it decodes any other.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import IO, Any, cast

import numpy as np
from PIL import Image, TiffImagePlugin
from PIL.ImageFile import ImageFile

from vlm_edge.vision.sources import DEFAULT_MAX_PIXELS, Rgb, Source, as_rgb, load_image, open_stream, opened

BAND_PX = 1 << 20
"""About how many pixels a band has; at least one row."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = MappingProxyType({0: 1, 2: 3, 3: 1, 4: 2, 6: 4})
"""Samples of a pixel by PNG's colour type."""
_CHUNK_BYTES = 1 << 20
_LONGEST_KEPT = 768
"""Bytes of the longest chunk that pixels depend on, a palette."""
_PART_PX = 1 << 24
"""Strips and tiles of TIFF with more pixels are not taken apart: there would be little to win."""
_STRIPS, _TILES = (273, 279), (324, 325)
"""TIFF tags of where parts lie and how many bytes they have."""
_WIDTH, _HEIGHT, _COMPRESSION, _ORIENTATION, _ROWS_PER_STRIP, _PLANAR, _TILE_WIDTH, _TILE_HEIGHT = (
    256, 257, 259, 274, 278, 284, 322, 323,
)  # fmt: skip
_COPIED = (258, 259, 262, 266, 277, 317, 320, 338, 339, 347, 530, 532)
"""Tags that a part takes over: what its bytes mean."""
_OLD_JPEG = 6
_LONG = 4


@dataclass(frozen=True)
class Bands:
    """An image that comes in bands, uint8 RGB [h, W, 3], once.  by_parts: whether no more of it than a band is decoded."""

    width: int
    height: int
    by_parts: bool
    rows: Iterator[Rgb]


def open_bands(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Bands:
    """The bands of an image, upright, as load_image would give its pixels.

    Raises BadImage as load_image does; for damage behind the header, when the band that holds it is read.
    """
    if isinstance(source, np.ndarray | Image.Image):
        return _whole(source, max_pixels)
    with opened(source, max_pixels) as (image, _):
        parts = _parts(image, source)
        width, height = image.size
    return _whole(source, max_pixels) if parts is None else Bands(width, height, True, parts.bands)


def band_px(source: Source, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> int:
    """Pixels of the largest band that open_bands decodes at a time, by the header alone; 0 where it decodes all of an image."""
    if isinstance(source, np.ndarray | Image.Image):
        return 0
    with opened(source, max_pixels) as (image, _):
        parts = _parts(image, source)
        return 0 if parts is None else min(parts.rows, image.height) * image.width


@dataclass(frozen=True)
class _Parts:
    """Rows in a band, and the bands."""

    rows: int
    bands: Iterator[Rgb]


def _parts(image: Image.Image, source: Source) -> _Parts | None:
    reader = _READERS.get(image.format or "")
    return reader(image, source) if reader is not None and _is_upright(image) else None


def _is_upright(image: Image.Image) -> bool:
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return bool(image.tag_v2.get(_ORIENTATION, 1) == 1)
    return Image.Image.getexif(image).get(_ORIENTATION, 1) == 1 and "exif" not in image.info


def _whole(source: Source, max_pixels: int) -> Bands:
    pixels = load_image(source, max_pixels=max_pixels).pixels
    step = max(1, BAND_PX // pixels.shape[1])
    bands = (pixels[top : top + step] for top in range(0, len(pixels), step))
    return Bands(pixels.shape[1], pixels.shape[0], False, bands)


def _png(image: Image.Image, source: Source) -> _Parts | None:
    """Rows are inflated as they come; each band goes to Pillow behind the row above it, which its filters may refer to."""
    if getattr(image, "is_animated", False):
        return None
    kept = b""
    with open_stream(source) as stream:
        stream.seek(len(_SIGNATURE))
        while True:
            kind, length = _chunk_head(stream)
            if kind == b"IDAT":
                break
            if kind not in (b"IHDR", b"PLTE", b"tRNS") or length > _LONGEST_KEPT:
                stream.seek(length + 4, io.SEEK_CUR)
                continue
            data = _exactly(stream, length + 4)[:-4]
            if kind != b"IHDR":
                kept += _chunk(kind, data)
                continue
            head = data[8:13]
            depth, colour, _, _, interlaced = head
            if depth != 8 or interlaced or colour not in _CHANNELS:
                return None
    return _Parts(max(1, BAND_PX // image.width), _png_rows(source, image.size, head, kept))


def _png_rows(source: Source, size: tuple[int, int], head: bytes, kept: bytes) -> Iterator[Rgb]:
    width, height = size
    row_bytes = 1 + width * _CHANNELS[head[1]]
    step, done, above = max(1, BAND_PX // width), 0, b""
    with open_stream(source) as stream:
        held = bytearray()
        for piece in _inflated(stream):
            held += piece
            while done < height and len(held) >= row_bytes * (rows := min(step, height - done)):
                body = above + bytes(held[: row_bytes * rows])
                del held[: row_bytes * rows]
                header = struct.pack(">II", width, len(body) // row_bytes) + head
                file = _SIGNATURE + _chunk(b"IHDR", header) + kept + _chunk(b"IDAT", zlib.compress(body, 0))
                with Image.open(io.BytesIO(file + _chunk(b"IEND", b"")), formats=("PNG",)) as band:
                    yield as_rgb(band.crop((0, 1 if above else 0, *band.size)))
                    above = b"\0" + np.asarray(band)[-1].tobytes()
                done += rows
            if done == height:
                return
        raise EOFError("rows are missing")


def _inflated(stream: IO[bytes]) -> Iterator[bytes]:
    """What the IDAT chunks hold, in pieces of bounded size however well it is packed."""
    inflate = zlib.decompressobj()
    stream.seek(len(_SIGNATURE))
    while not inflate.eof:
        kind, length = _chunk_head(stream)
        if kind == b"IEND":
            return
        if kind != b"IDAT":
            stream.seek(length + 4, io.SEEK_CUR)
            continue
        while length:
            packed = _exactly(stream, min(length, _CHUNK_BYTES))
            length -= len(packed)
            while packed:
                yield inflate.decompress(packed, _CHUNK_BYTES)
                packed = inflate.unconsumed_tail
        _exactly(stream, 4)


def _chunk_head(stream: IO[bytes]) -> tuple[bytes, int]:
    head = _exactly(stream, 8)
    return head[4:], int.from_bytes(head[:4], "big")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _ppm(image: Image.Image, source: Source) -> _Parts | None:
    """Samples as they are, from an offset on."""
    tile: Any = cast("ImageFile", image).tile[0]
    arguments = tile[3] if isinstance(tile[3], str) else tile[3][0]
    if tile[0] != "raw" or image.mode not in ("L", "RGB") or arguments != image.mode:
        return None
    rows = _ppm_rows(source, image.size, int(tile[2]), 3 if image.mode == "RGB" else 1)
    return _Parts(max(1, BAND_PX // image.width), rows)


def _ppm_rows(source: Source, size: tuple[int, int], offset: int, channels: int) -> Iterator[Rgb]:
    width, height = size
    step = max(1, BAND_PX // width)
    with open_stream(source) as stream:
        stream.seek(offset)
        for top in range(0, height, step):
            rows = min(step, height - top)
            samples = np.frombuffer(_exactly(stream, rows * width * channels), np.uint8).reshape(rows, width, channels)
            yield np.ascontiguousarray(np.broadcast_to(samples, (rows, width, 3)))


def _tiff(image: Image.Image, source: Source) -> _Parts | None:
    """Each strip or tile becomes a TIFF of one strip."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    tags: Any = image.tag_v2
    tiled = _TILES[0] in tags
    offsets, counts = (_many(tags.get(tag)) for tag in (_TILES if tiled else _STRIPS))
    size = (tags[_TILE_WIDTH], tags[_TILE_HEIGHT]) if tiled else (image.width, tags.get(_ROWS_PER_STRIP, image.height))
    across, down = -(-image.width // size[0]), -(-image.height // size[1])
    planar = tags.get(_PLANAR, 1) != 1
    odd = image.mode[0] in "IF" or planar or tags.get(_COMPRESSION) == _OLD_JPEG
    if odd or down == 1 or size[0] * size[1] > _PART_PX or not len(offsets) == len(counts) == across * down:
        return None
    kept = {tag: (tags.tagtype[tag], tags[tag]) for tag in _COPIED if tag in tags}
    places = list(zip(offsets, counts, strict=True))
    return _Parts(size[1], _tiff_rows(source, image.size, size, places, tags.prefix, kept, padded=tiled))


def _tiff_rows(
    source: Source,
    size: tuple[int, int],
    part: tuple[int, int],
    places: list[tuple[int, int]],
    prefix: bytes,
    kept: Mapping[int, tuple[int, Any]],
    *,
    padded: bool,
) -> Iterator[Rgb]:
    """part: width and height of a strip or tile.  places: offset and bytes of each.  padded: tiles keep their size at the edges."""
    (width, height), across = size, -(-size[0] // part[0])
    with open_stream(source) as stream:
        for top in range(0, height, part[1]):
            rows = min(part[1], height - top)
            band = np.empty((rows, width, 3), np.uint8)
            for column in range(across):
                offset, count = places[top // part[1] * across + column]
                stream.seek(offset)
                shape = part[0], part[1] if padded else rows
                left = column * part[0]
                file = _tiff_of(_exactly(stream, count), shape, prefix, kept)
                with Image.open(io.BytesIO(file), formats=("TIFF",)) as decoded:
                    band[:, left : left + part[0]] = as_rgb(decoded.crop((0, 0, min(part[0], width - left), rows)))
            yield band


def _tiff_of(data: bytes, shape: tuple[int, int], prefix: bytes, kept: Mapping[int, tuple[int, Any]]) -> bytes:
    """A file of one strip (width, height) with these bytes in it."""
    ifh = prefix + (b"\x2a\0\0\0\0\0" if prefix == b"II" else b"\0\x2a\0\0\0\0")
    directory = TiffImagePlugin.ImageFileDirectory_v2(ifh)
    entries = {_WIDTH: shape[0], _HEIGHT: shape[1], _STRIPS[0]: 0, _STRIPS[1]: len(data), _ROWS_PER_STRIP: shape[1]}
    for tag, value in entries.items():
        directory.tagtype[tag] = _LONG
        directory[tag] = value
    for tag, (kind, value) in kept.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    file = io.BytesIO()
    directory.save(file)
    file.write(data)
    return file.getvalue()


def _many(value: Any) -> tuple[int, ...]:
    """A tag's values; none where it is missing."""
    return () if value is None else (value,) if isinstance(value, int) else tuple(value)


def _exactly(stream: IO[bytes], size: int) -> bytes:
    """So many bytes; raises EOFError, which open_stream tells as a file that is cut short."""
    data = stream.read(size)
    if len(data) != size:
        raise EOFError("the file ends too early")
    return data


_READERS: Mapping[str, Callable[[Image.Image, Source], _Parts | None]] = MappingProxyType(
    {"PNG": _png, "PPM": _ppm, "TIFF": _tiff}
)
