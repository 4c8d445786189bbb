"""What becomes of the pixels. Values are computed by hand, with numpy, or by Pillow on another route."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.image_bytes import chunk, encode, noise, png
from vlm_edge.errors import BadImage
from vlm_edge.vision import sources
from vlm_edge.vision.sources import load_image, load_reduced, probe, reduction


def tiff(width: int, height: int, data: bytes, tags: dict[int, int], *, order: str = "<") -> bytes:
    """One uncompressed strip of TIFF written out by hand. tags: those beyond size and strip, all of one SHORT."""
    entries = {256: width, 257: height, 259: 1, 277: 1, 278: height, **tags}
    entries |= {273: 8 + 2 + 12 * (len(entries) + 2) + 4, 279: len(data)}
    ifd = b"".join(
        struct.pack(order + "HHI", tag, 4 if tag in (273, 279) else 3, 1)
        + (struct.pack(order + "I", value) if tag in (273, 279) else struct.pack(order + "HH", value, 0))
        for tag, value in sorted(entries.items())
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    return head + struct.pack(order + "H", len(entries)) + ifd + b"\0\0\0\0" + data


def grey(source: object) -> list[int]:
    pixels = load_image(source).pixels
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0].ravel().tolist()


# ---- which way is up


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_what_pillow_makes_of_it(kind: str, orientation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BAND_PX", 50)  # several bands
    exif = Image.Exif()
    exif[274] = orientation
    data = encode(Image.fromarray(noise()), kind, exif=exif)
    with Image.open(io.BytesIO(data)) as opened:
        plain = opened.copy() if kind == "TIFF" else Image.open(io.BytesIO(encode(opened.convert("RGB"), exif=exif)))
        expected = np.asarray(ImageOps.exif_transpose(plain).convert("RGB"))
    loaded = load_image(data).pixels
    np.testing.assert_array_equal(loaded, expected)
    assert loaded.shape == ((19, 13, 3) if orientation >= 5 else (13, 19, 3))
    header = probe(data)
    assert (header.height, header.width) == loaded.shape[:2]
    np.testing.assert_array_equal(load_reduced(data, at_least_px=100), expected)
    with Image.open(io.BytesIO(data)) as opened:
        np.testing.assert_array_equal(load_image(opened).pixels, expected)


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, [[1, 2, 3], [4, 5, 6]]), (2, [[3, 2, 1], [6, 5, 4]]), (3, [[6, 5, 4], [3, 2, 1]]),
        (4, [[4, 5, 6], [1, 2, 3]]), (5, [[1, 4], [2, 5], [3, 6]]), (6, [[4, 1], [5, 2], [6, 3]]),
        (7, [[6, 3], [5, 2], [4, 1]]), (8, [[3, 6], [2, 5], [1, 4]]),
    ],
)  # fmt: skip
def test_orientation_by_hand(orientation: int, upright: list[list[int]]) -> None:
    """EXIF 2.3, tag 0x0112: 6 says that the stored first row is the right-hand side, and so on."""
    exif = Image.Exif()
    exif[274] = orientation
    stored = Image.fromarray(np.array([[1, 2, 3], [4, 5, 6]], np.uint8))
    assert load_image(encode(stored, exif=exif)).pixels[:, :, 0].tolist() == upright


def test_header_and_pixels_agree_on_a_tiff_that_only_xmp_calls_rotated() -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    data = encode(Image.fromarray(noise()), "TIFF", tiffinfo={700: xmp})
    header = probe(data)
    assert (header.height, header.width) == load_image(data).pixels.shape[:2]


@pytest.mark.parametrize(
    "junk", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0junk and more junk", b"Exif\0\0MM\0*"]
)
def test_damaged_exif_does_not_condemn_the_pixels(junk: bytes) -> None:
    pixels = noise()
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    data = png(19, 13, depth=8, colour=2, rows=rows, extra=chunk(b"eXIf", junk[6:] or b"\0"))
    np.testing.assert_array_equal(load_image(data).pixels, pixels)
    jpeg = encode(Image.fromarray(pixels), "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(junk) + 2) + junk
    assert load_image(jpeg[:2] + segment + jpeg[2:]).pixels.shape == (13, 19, 3)


# ---- colours


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        # c * a + 255 * (1 - a), with a = alpha / 255
        ("RGBA", (200, 100, 0, 128), (227, 177, 127)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("LA", (40, 51), (212, 212, 212)),
        ("RGBX", (1, 2, 3, 4), (1, 2, 3)),
        ("RGBa", (100, 50, 0, 128), (227, 177, 127)),
        ("La", (20, 128), (147, 147, 147)),
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("CMYK", (255, 0, 0, 0), (0, 255, 255)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I;16", 32768, (128, 128, 128)),
        ("I;16B", 257 * 9, (9, 9, 9)),
        ("I;16L", 257 * 9, (9, 9, 9)),
    ],
)
def test_modes_by_hand(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    pixels = load_image(Image.new(mode, (3, 2), colour)).pixels
    assert pixels.shape == (2, 3, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= (1 if mode in ("RGBa", "La") else 0)


def test_ycbcr_is_bt601() -> None:
    y, cb, cr = 120, 90, 160
    expected = (y + 1.402 * (cr - 128), y - 0.344136 * (cb - 128) - 0.714136 * (cr - 128), y + 1.772 * (cb - 128))
    loaded = load_image(Image.new("YCbCr", (2, 2), (y, cb, cr))).pixels[0, 0]
    np.testing.assert_allclose(loaded, expected, atol=1)


def lab_to_srgb(lightness: float, a: float, b: float) -> np.ndarray:
    """CIE 15 (D50) -> XYZ -> sRGB with Bradford-adapted primaries and the curve of IEC 61966-2-1."""
    fy = (lightness + 16) / 116
    f = np.array([fy + a / 500, fy, fy - b / 200])
    xyz = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29)) * [0.96422, 1.0, 0.82521]
    matrix = [
        [3.1338561, -1.6168667, -0.4906146],
        [-0.9787684, 1.9161415, 0.0334540],
        [0.0719453, -0.2289914, 1.4052427],
    ]
    linear = np.clip(np.array(matrix) @ xyz, 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


@pytest.mark.parametrize("lab", [(50, 0, 0), (60, 30, -20), (80, -25, 40), (30, 10, 10)])
def test_lab_tiff_follows_the_cie_formula(lab: tuple[int, int, int]) -> None:
    sample = bytes([round(lab[0] * 255 / 100), lab[1] & 0xFF, lab[2] & 0xFF])
    with Image.open(io.BytesIO(encode(Image.frombytes("LAB", (4, 4), sample * 16, "raw", "LAB"), "TIFF"))) as image:
        assert image.mode == "LAB"
        loaded = load_image(image).pixels[0, 0]
    np.testing.assert_allclose(loaded, lab_to_srgb(*lab), atol=2)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_files(kind: str) -> None:
    data = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), kind)
    np.testing.assert_allclose(load_image(data).pixels[8, 8], (255, 0, 0), atol=2)


def test_palettes_with_and_without_transparency() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 10, 20, 30])
    image.putdata([0, 1, 2, 3])
    opaque = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]
    for kind in ("PNG", "GIF", "BMP", "TIFF"):
        assert load_image(encode(image, kind)).pixels[0].tolist() == opaque
    for kind in ("PNG", "GIF"):
        assert load_image(encode(image, kind, transparency=1)).pixels[0].tolist() == [opaque[0], [255] * 3, *opaque[2:]]
    partly = load_image(encode(image, "PNG", transparency=bytes([255, 0, 51, 128]))).pixels[0].tolist()
    assert partly == [[255, 0, 0], [255, 255, 255], [204, 204, 255], [132, 137, 142]]
    with_alpha = image.convert("PA")
    with_alpha.putalpha(Image.new("L", (4, 1), 51))
    assert load_image(with_alpha).pixels[0].tolist() == [
        [255, 204, 204],
        [204, 255, 204],
        [204, 204, 255],
        [206, 208, 210],
    ]


def test_transparent_colours_of_png() -> None:
    key = chunk(b"tRNS", struct.pack(">H", 9))
    assert grey(png(3, 1, depth=8, colour=0, rows=b"\0\x08\x09\x0a", extra=key)) == [8, 255, 10]
    key = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    rgb = load_image(png(2, 1, depth=8, colour=2, rows=b"\0\1\2\3\1\2\4", extra=key)).pixels
    assert rgb[0].tolist() == [[255, 255, 255], [1, 2, 4]]
    key = chunk(b"tRNS", struct.pack(">H", 1000))
    assert grey(png(2, 1, depth=16, colour=0, rows=b"\0" + struct.pack(">HH", 1000, 1001), extra=key)) == [255, 4]
    key = chunk(b"tRNS", struct.pack(">H", 0))
    assert grey(png(8, 1, depth=1, colour=0, rows=b"\0\x55", extra=key)) == [255] * 8


def test_one_bit() -> None:
    bits = Image.fromarray(np.eye(9, dtype=bool))
    for kind in ("PNG", "TIFF", "BMP", "PPM"):
        np.testing.assert_array_equal(load_image(encode(bits, kind)).pixels[:, :, 0], np.eye(9, dtype=np.uint8) * 255)
    np.testing.assert_array_equal(
        load_image(encode(bits, "TIFF", compression="group4")).pixels[:, :, 2], np.eye(9, dtype=np.uint8) * 255
    )


# ---- grey of more than 8 bits

DEEP = np.array([[0, 1, 128, 129, 257, 4000], [32767, 32768, 51400, 65000, 65534, 65535]], np.uint16)
DEEP_IN_8_BITS = np.floor(DEEP / 257 + 0.5).astype(int).ravel().tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "TIFF deflate", "TIFF MM", "TIFF MM in tiles"])
def test_16_bit_grey_is_divided_by_257(kind: str) -> None:
    if kind == "TIFF MM":
        data = tiff(6, 2, DEEP.astype(">u2").tobytes(), {258: 16, 262: 1}, order=">")
    elif kind == "TIFF MM in tiles":
        tiles = {258: 16, 262: 1, 322: 6, 323: 2}
        data = tiff(6, 2, DEEP.astype(">u2").tobytes(), tiles, order=">")
    elif kind == "TIFF deflate":
        data = encode(Image.fromarray(DEEP), "TIFF", compression="tiff_adobe_deflate")
    else:
        data = encode(Image.fromarray(DEEP), kind)
    assert grey(data) == DEEP_IN_8_BITS


def test_12_bit_tiff_uses_its_own_range() -> None:
    """Two samples of 12 bits in three bytes, high nibble first: 0x000 0xFFF, 0x800 0x123."""
    assert grey(tiff(4, 1, bytes([0x00, 0x0F, 0xFF, 0x80, 0x01, 0x23]), {258: 12, 262: 1})) == [0, 255, 128, 18]


def test_white_is_zero_is_inverted_at_any_depth() -> None:
    assert grey(tiff(2, 1, struct.pack("<HH", 0, 65535), {258: 16, 262: 0})) == [255, 0]
    assert grey(tiff(2, 1, bytes([0, 255]), {258: 8, 262: 0})) == [255, 0]
    assert grey(tiff(2, 1, struct.pack("<ff", 0, 2), {258: 32, 262: 0, 339: 3})) == [255, 0]


def test_int32_counts_as_16_bit_within_that_range_and_is_stretched_beyond() -> None:
    assert grey(Image.fromarray(DEEP.astype(np.int32))) == DEEP_IN_8_BITS
    assert grey(Image.fromarray(np.array([[-100, 0, 100]], np.int32))) == [0, 128, 255]
    assert grey(Image.fromarray(np.array([[0, 10**6, 2 * 10**6]], np.int32))) == [0, 128, 255]
    extreme = np.array([[-(2**31), 2**31 - 1]], np.int32)
    assert grey(Image.fromarray(extreme)) == [0, 255]


def test_float_is_stretched_from_its_minimum_to_its_maximum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "_BAND_PX", 2)  # the range is the whole image's, not a band's
    values = np.array([[-1.5, 0.0], [0.25, 1.0], [2.5, 0.5]], np.float32)
    expected = np.rint((values.astype(np.float64) + 1.5) / 4 * 255).astype(int).ravel().tolist()
    assert grey(Image.fromarray(values)) == expected
    assert grey(encode(Image.fromarray(values), "TIFF")) == expected
    huge = np.array([[-3e38, 3e38]], np.float32)
    assert grey(Image.fromarray(huge)) == [0, 255]


def test_an_image_of_one_value_is_black() -> None:
    assert grey(Image.fromarray(np.full((2, 2), 0.7, np.float32))) == [0] * 4
    assert grey(Image.fromarray(np.full((2, 2), -5, np.int32))) == [0] * 4


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 3, 5])
def test_float_that_is_not_finite_is_refused(bad: float, place: int) -> None:
    values = np.arange(6, dtype=np.float32)
    values[place] = bad
    with pytest.raises(BadImage, match="NaN or infinite"):
        load_image(encode(Image.fromarray(values.reshape(2, 3)), "TIFF"))


# ---- more than one picture


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_the_first_frame_or_page(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(load_image(data).pixels, np.broadcast_to((255, 0, 0), (16, 16, 3)), atol=2)
    assert (probe(data).width, probe(data).height) == (16, 16)


def test_a_pil_image_keeps_its_current_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime")]
    with Image.open(io.BytesIO(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))) as image:
        image.seek(1)
        assert load_image(image).pixels[0, 0].tolist() == [0, 255, 0]
        assert image.tell() == 1


# ---- the reduced view


@pytest.mark.parametrize(
    ("at_least_px", "short_px"), [(1, 30), (30, 30), (31, 60), (60, 60), (61, 120), (121, 240), (999, 240)]
)
def test_a_jpeg_is_reduced_as_far_as_its_short_side_allows(at_least_px: int, short_px: int) -> None:
    smooth = np.stack(np.broadcast_arrays(*np.ogrid[0:240, 0:360], 99), axis=2).astype(np.float64) * (0.9, 0.7, 1)
    smooth = smooth.astype(np.uint8)
    reduced = load_reduced(encode(Image.fromarray(smooth), "JPEG", quality=95), at_least_px=at_least_px)
    assert reduced.shape == (short_px, short_px * 3 // 2, 3)
    step = 240 // short_px
    mean = smooth.reshape(short_px, step, -1, step, 3).mean(axis=(1, 3))
    assert np.abs(reduced - mean).mean() < 2


@pytest.mark.parametrize("size", [(8, 8), (240, 360), (517, 1033), (63, 999)])
@pytest.mark.parametrize("at_least_px", [1, 7, 8, 9, 31, 64, 65, 600])
def test_the_announced_reduction_is_the_one_that_is_made(size: tuple[int, int], at_least_px: int) -> None:
    reduced = load_reduced(encode(Image.new("RGB", size), "JPEG"), at_least_px=at_least_px)
    factor = reduction(*size, at_least_px=at_least_px)
    assert reduced.shape[1::-1] == tuple(-(-side // factor) for side in size)


@pytest.mark.parametrize("progressive", [True, False])
def test_a_header_tells_a_progressive_jpeg(progressive: bool) -> None:
    data = encode(Image.new("RGB", (40, 30)), "JPEG", progressive=progressive)
    assert probe(data).progressive is progressive


def test_other_formats_and_pil_images_stay_in_full() -> None:
    pixels = noise(64, 96)
    np.testing.assert_array_equal(load_reduced(encode(Image.fromarray(pixels)), at_least_px=8), pixels)
    with Image.open(io.BytesIO(encode(Image.fromarray(pixels), "JPEG"))) as image:
        assert load_reduced(image, at_least_px=8).shape == (64, 96, 3)
        assert image.size == (96, 64)
    assert load_reduced(pixels, at_least_px=8) is pixels


@pytest.mark.parametrize("at_least_px", [0, -3])
def test_any_size_is_at_least_nothing(at_least_px: int) -> None:
    assert load_reduced(encode(Image.fromarray(noise(64, 96)), "JPEG"), at_least_px=at_least_px).shape == (8, 12, 3)
