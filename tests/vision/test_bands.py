"""Images in bands against load_image, which decodes them in one piece."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.image_bytes import chunk, encode, noise, png
from vlm_edge.errors import BadImage
from vlm_edge.vision import bands
from vlm_edge.vision.sources import load_image

PIXELS = noise(61, 47)
RGBA = np.dstack([PIXELS, noise(61, 47, seed=1)[..., 0]])


@pytest.fixture(autouse=True)
def _small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "BAND_PX", 47 * 8)


def filtered(pixels: np.ndarray, kinds: list[int]) -> bytes:
    """Rows of an 8-bit PNG, each with the filter that is next in turn, by the formulas of the PNG specification."""
    rows, bpp = b"", pixels.shape[2]
    above = np.zeros_like(pixels[0], np.int32)
    for number, row in enumerate(pixels.astype(np.int32)):
        kind = kinds[number % len(kinds)]
        left, corner = np.zeros_like(row), np.zeros_like(row)
        left[1:], corner[1:] = row[:-1], above[:-1]
        guess = left + above - corner
        near = [abs(guess - left), abs(guess - above), abs(guess - corner)]
        paeth = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner))
        predicted = [np.zeros_like(row), left, above, (left + above) // 2, paeth][kind]
        rows += bytes([kind]) + ((row - predicted) % 256).astype(np.uint8).tobytes()
        above = row
    assert len(rows) == len(pixels) * (1 + pixels.shape[1] * bpp)
    return rows


def files() -> dict[str, bytes]:
    """By parts, as their names say, or else whole."""
    image = Image.fromarray(PIXELS)
    palette = image.quantize(40)
    out = {
        "parts: png rgb": encode(image),
        "parts: png grey": encode(image.convert("L")),
        "parts: png palette": encode(palette, bits=8),
        "parts: png palette, transparent": encode(palette, bits=8, transparency=3),
        "parts: png rgba": encode(Image.fromarray(RGBA)),
        "parts: png grey, alpha": encode(Image.fromarray(RGBA).convert("LA")),
        "parts: png one colour transparent": encode(image, transparency=tuple(int(v) for v in PIXELS[9, 9])),
        "parts: ppm": encode(image, "PPM"),
        "parts: pgm": encode(image.convert("L"), "PPM"),
        "whole: png interlaced": interlaced(),
        "whole: png 16 bits": encode(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 250)),
        "whole: png 1 bit": encode(image.convert("1")),
        "whole: jpeg": encode(image, "JPEG"),
        "whole: bmp": encode(image, "BMP"),
        "whole: webp": encode(image, "WEBP"),
        "whole: tiff, one strip": encode(image, "TIFF", tiffinfo={278: 61}),
        "whole: tiff, turned": encode(image, "TIFF", compression="tiff_lzw", tiffinfo={278: 7, 274: 6}),
    }  # fmt: skip
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        out[f"parts: tiff {name}"] = encode(image, "TIFF", compression=name, tiffinfo={278: 8})
    out["parts: tiff predictor"] = encode(image, "TIFF", compression="tiff_lzw", tiffinfo={278: 7, 317: 2})
    out["parts: tiff grey"] = encode(image.convert("L"), "TIFF", compression="tiff_lzw", tiffinfo={278: 7})
    out["parts: tiff palette"] = encode(palette, "TIFF", compression="tiff_lzw", tiffinfo={278: 7})
    for kinds in ([0], [1], [2], [3], [4], [4, 3, 2, 1, 0], [2, 4]):
        rows = filtered(PIXELS, kinds)
        out[f"parts: png filters {kinds}"] = png(47, 61, depth=8, colour=2, rows=rows)
    return out


def interlaced() -> bytes:
    """Adam7 of a grey image, its seven passes written out."""
    grey = PIXELS[..., 0]
    rows = b""
    for y0, x0, dy, dx in (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    ):
        for row in grey[y0::dy, x0::dx]:
            rows += b"\0" + row.tobytes()
    header = struct.pack(">IIBBBBB", 47, 61, 8, 0, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_bands_are_the_image(name: str) -> None:
    opened = bands.open_bands(FILES[name])
    expected = load_image(FILES[name]).pixels
    found = list(opened.rows)
    assert (opened.height, opened.width) == expected.shape[:2]
    assert opened.by_parts == name.startswith("parts")
    assert len(found) > 1
    assert max(len(band) for band in found) <= 61 // 2
    for band in found:
        assert band.dtype == np.uint8
        assert band.shape[1:] == (expected.shape[1], 3)
    np.testing.assert_array_equal(np.concatenate(found), expected)


def tiled_tiff(tile_px: int) -> bytes:
    """An uncompressed RGB TIFF in tiles, written out by hand: Pillow writes strips only."""
    height, width = PIXELS.shape[:2]
    rows, cols = -(-height // tile_px), -(-width // tile_px)
    padded = np.zeros((rows * tile_px, cols * tile_px, 3), np.uint8)
    padded[:height, :width] = PIXELS
    tiles = [
        padded[r * tile_px : (r + 1) * tile_px, c * tile_px : (c + 1) * tile_px].tobytes()
        for r in range(rows)
        for c in range(cols)
    ]
    start = 8 + 2 + 12 * 11 + 4
    arrays = start, start + 6, start + 6 + 4 * len(tiles)
    data_at = arrays[2] + 4 * len(tiles)
    offsets = [data_at + i * len(tiles[0]) for i in range(len(tiles))]
    entries = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, arrays[0]), (259, 3, 1, 1), (262, 3, 1, 2), (277, 3, 1, 3),
        (284, 3, 1, 1), (322, 4, 1, tile_px), (323, 4, 1, tile_px), (324, 4, len(tiles), arrays[1]),
        (325, 4, len(tiles), arrays[2]),
    ]  # fmt: skip
    out = b"II" + struct.pack("<HI", 42, 8) + struct.pack("<H", len(entries))
    out += b"".join(struct.pack("<HHII", *entry) for entry in entries) + struct.pack("<I", 0)
    out += struct.pack("<3H", 8, 8, 8) + struct.pack(f"<{len(tiles)}I", *offsets)
    return out + struct.pack(f"<{len(tiles)}I", *[len(t) for t in tiles]) + b"".join(tiles)


@pytest.mark.parametrize("tile_px", [16, 32])
def test_tiles_of_a_tiff_come_row_by_row(tile_px: int) -> None:
    data = tiled_tiff(tile_px)
    opened = bands.open_bands(data)
    assert opened.by_parts
    np.testing.assert_array_equal(np.concatenate(list(opened.rows)), PIXELS)
    np.testing.assert_array_equal(load_image(data).pixels, PIXELS)


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("parts")])
def test_files_that_are_cut_short_are_bad_images(name: str) -> None:
    data = FILES[name]
    with pytest.raises(BadImage) as caught:
        list(bands.open_bands(data[: len(data) // 2]).rows)
    assert caught.value.remedy


def test_damage_inside_a_png_is_a_bad_image() -> None:
    data = bytearray(FILES["parts: png rgb"])
    data[len(data) // 2] ^= 0xFF
    with pytest.raises(BadImage, match="damaged or cut short"):
        list(bands.open_bands(bytes(data)).rows)


def test_pieces_of_any_size_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to one byte of what is packed, and one of what it holds, at a time."""
    data = png(50, 40, depth=8, colour=0, rows=(b"\0" + b"\7" * 50) * 40)
    for size in range(1, 40):
        monkeypatch.setattr(bands, "_CHUNK_BYTES", size)
        found = np.concatenate(list(bands.open_bands(data).rows))
        assert found.shape == (40, 50, 3)
        assert (found == 7).all()


def test_long_chunks_that_no_pixel_depends_on_are_passed_over() -> None:
    plain = FILES["parts: png rgb"]
    long = plain[:33] + chunk(b"teXt", bytes(100_000)) + plain[33:]
    opened = bands.open_bands(long)
    assert opened.by_parts
    np.testing.assert_array_equal(np.concatenate(list(opened.rows)), PIXELS)


def test_huge_tiles_are_left_to_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bands, "_PART_PX", 255)
    opened = bands.open_bands(tiled_tiff(16))
    assert not opened.by_parts
    np.testing.assert_array_equal(np.concatenate(list(opened.rows)), PIXELS)


def test_limits_and_missing_files_are_told_as_ever(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="100"):
        bands.open_bands(FILES["parts: png rgb"], max_pixels=100)
    with pytest.raises(BadImage, match="does not exist"):
        bands.open_bands(tmp_path / "none.png")


def test_arrays_streams_and_paths(tmp_path: Path) -> None:
    path = tmp_path / "page.png"
    path.write_bytes(FILES["parts: png rgb"])
    for source in (PIXELS, Image.fromarray(PIXELS), path, io.BytesIO(FILES["parts: png rgb"])):
        np.testing.assert_array_equal(np.concatenate(list(bands.open_bands(source).rows)), PIXELS)


def test_a_png_that_packs_well_is_inflated_piece_by_piece() -> None:
    """64 million black pixels in 63 KB: only a band of them is ever held."""
    import tracemalloc

    width, height = 8000, 8000
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(b"\0" * (1 + width)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    tracemalloc.start()
    rows = sum(len(band) for band in bands.open_bands(data).rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == height
    assert peak < 8 << 20
