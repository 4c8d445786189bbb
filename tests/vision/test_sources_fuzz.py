"""2,000 damaged images: each loads into RGB uint8 or raises BadImage, within seconds and without a warning."""

import io
import random
import struct
import time
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from vlm_edge.errors import BadImage
from vlm_edge.vision.sources import load_image, load_reduced, probe

WIDTH, HEIGHT = 37, 29
MUTATIONS_OF_EACH = 80
MAX_PIXELS = 2_000_000
SECONDS_FOR_ONE = 5.0  # of processor time, so that a busy machine changes nothing
SIZES = (0, 1, 2, 28, 38, 255, 256, 1000, 4096, 30_000, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
MARKS = [
    b"IDAT", b"fdAT", b"acTL\0\0\0\2\0\0\0\0", b"tRNS\0\0", b"eXIfII*\0\x08\0\0\0", b"VP8X", b"ANMF",
    b"\xff\xda", b"\xff\xc4\0\x1f", b"\xff\xdd\0\4\0\1", b"\xff\xc2\0\x0b\x08", b"\xff\xe2\0\x08MPF\0",
    b"\xff\xe1\0\x10Exif\0\0MM\0*\0\0\0\x08", b"\x21\xf9\4\x0d\0\0\0\0", b"\x2c\0\0\0\0\xff\xff\xff\xff\0",
    b"#comment", b"-1 ", b"99999999 ", b"\0\2\xff\xff", b"\0\0" * 8, b"II*\0", b"MM\0+\0\x08\0\0",
]  # fmt: skip


def picture(mode: str = "RGB") -> Image.Image:
    noise = np.random.default_rng(1).integers(0, 40, (HEIGHT, WIDTH, 4))
    ramps = np.stack(np.broadcast_arrays(*np.ogrid[0:HEIGHT, 0:WIDTH], 90, 128), axis=2) * (5, 4, 1, 1)
    image = Image.fromarray((ramps + noise).astype(np.uint8))
    if mode in ("I;16", "I;16B", "F"):
        grey = np.asarray(image.convert("L")).astype({"I;16": "<u2", "I;16B": ">u2", "F": "f4"}[mode])
        return Image.fromarray(grey)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


def encoded(mode: str, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    picture(mode).save(out, kind, **options)
    return out.getvalue()


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[274] = 6
    exif[271] = "maker"
    return exif


def rle_bmp() -> bytes:
    """8-bit run-length-coded BMP, which Pillow reads but does not write: runs, literals, a jump, ends of line."""
    row = bytes([20, 3, 0, 5, 1, 2, 3, 4, 5, 0, 12, 9, 0, 0])
    data = row * (HEIGHT - 1) + bytes([0, 2, 3, 0, 34, 7, 0, 1])
    palette = b"".join(bytes([i, 255 - i, i // 2, 0]) for i in range(256))
    dib = struct.pack("<IiiHHIIiiII", 40, WIDTH, HEIGHT, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 14 + 40 + 1024 + len(data), 0, 0, 14 + 40 + 1024) + dib + palette + data


def frames(mode: str, kind: str, **options: object) -> bytes:
    # pictures of their own each time: Pillow leaves an encoder's settings behind in those that it appends
    return encoded(mode, kind, save_all=True, append_images=[picture().rotate(90), picture().rotate(180)], **options)


SEEDS: dict[str, Callable[[], bytes]] = {
    "png rgb with exif": lambda: encoded("RGB", "PNG", exif=turned()),
    "png palette": lambda: encoded("P", "PNG", transparency=bytes(range(200))),
    "png 16-bit": lambda: encoded("I;16", "PNG"),
    "png animated": lambda: frames("RGBA", "PNG"),
    "jpeg with exif": lambda: encoded("RGB", "JPEG", exif=turned()),
    "jpeg progressive": lambda: encoded("RGB", "JPEG", progressive=True),
    "jpeg cmyk": lambda: encoded("CMYK", "JPEG"),
    "mpo": lambda: frames("RGB", "MPO"),
    "webp lossy with exif": lambda: encoded("RGB", "WEBP", exif=turned()),
    "webp lossless alpha": lambda: encoded("RGBA", "WEBP", lossless=True),
    "webp animated": lambda: frames("RGB", "WEBP"),
    "tiff raw pages": lambda: frames("RGB", "TIFF"),
    "tiff lzw with exif": lambda: encoded("RGB", "TIFF", compression="tiff_lzw", exif=turned()),
    "tiff jpeg": lambda: encoded("RGB", "TIFF", compression="jpeg"),
    "tiff group 4": lambda: encoded("1", "TIFF", compression="group4"),
    "tiff float": lambda: encoded("F", "TIFF", compression="tiff_adobe_deflate"),
    "tiff 16-bit MM": lambda: encoded("I;16B", "TIFF"),
    "tiff lab": lambda: encoded("LAB", "TIFF"),
    "bmp": lambda: encoded("RGB", "BMP"),
    "bmp palette": lambda: encoded("P", "BMP"),
    "bmp run-length": rle_bmp,
    "gif": lambda: frames("P", "GIF", transparency=3, disposal=2),
    "ppm": lambda: encoded("RGB", "PPM"),
    "pgm 16-bit": lambda: encoded("I;16", "PPM"),
    "ppm plain": lambda: b"P3 37 29 200\n" + b" ".join(str(i % 200).encode() for i in range(WIDTH * HEIGHT * 3)),
}


def flip(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8, 40))):
        at = rng.randrange(min(len(data), rng.choice((40, 400, len(data)))))
        data[at] = rng.choice((0, 1, 127, 128, 255, data[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))


def truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice((rng.randrange(len(data)), rng.randrange(min(len(data), 60)))) :]


def insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(min(len(data), rng.choice((60, len(data)))))
    copied = bytes(data[(start := rng.randrange(len(data))) : start + rng.randrange(1, 60)])
    data[at:at] = rng.choice((rng.choice(MARKS), rng.randbytes(rng.randrange(1, 30)), copied))


def cut_out(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.choice((1, 2, 4, 100))]


def resize(data: bytearray, rng: random.Random) -> None:
    """Another width or height, wherever the header says it: big and little endian, 16 and 32 bits, or in digits."""
    forms = [struct.Struct(form) for form in ("<H", ">H", "<I", ">I")]
    spots = []
    for number in (WIDTH, HEIGHT, WIDTH - 1, HEIGHT - 1):
        for form in forms:
            at = data.find(form.pack(number))
            spots += [(at, form)] if 0 <= at < 600 else []
    if data[:1] == b"P" and spots == []:
        data[:] = data.replace(b"37 29", f"{rng.choice(SIZES)} {rng.choice(SIZES)}".encode(), 1)
    for at, form in rng.sample(spots, min(len(spots), rng.choice((1, 1, 2)))):
        data[at : at + form.size] = form.pack(rng.choice(SIZES) % (1 << 8 * form.size))


def mend_png(data: bytearray) -> None:
    """Checksums that fit again; without them nearly every change to a PNG ends at the checksum."""
    at = 8
    while at + 12 <= len(data) and data.startswith(b"\x89PNG"):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 12 + size > len(data):
            break
        data[at + 8 + size : at + 12 + size] = zlib.crc32(data[at + 4 : at + 8 + size]).to_bytes(4, "big")
        at += 12 + size


def mutated(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for change in rng.choices((flip, truncate, insert, cut_out, resize), (4, 1, 2, 1, 3), k=rng.choice((1, 1, 2, 3))):
        if damaged:
            change(damaged, rng)
    if rng.random() < 0.8:
        mend_png(damaged)
    return bytes(damaged)


def outcome(call: Callable[..., object], data: bytes, **options: int) -> object:
    start = time.process_time()
    try:
        result = call(data, max_pixels=MAX_PIXELS, **options)
    except BadImage:
        result = None
    assert time.process_time() - start < SECONDS_FOR_ONE
    return result


def test_there_are_two_thousand() -> None:
    assert len(SEEDS) * MUTATIONS_OF_EACH == 2000


@pytest.mark.parametrize("name", SEEDS)
def test_damaged_images_load_or_are_refused(name: str) -> None:
    whole = SEEDS[name]()
    assert {load_image(whole).width, load_image(whole).height} == {WIDTH, HEIGHT}
    rng = random.Random(name)
    loaded = 0
    for number in range(MUTATIONS_OF_EACH):
        data = mutated(whole, rng)
        header, image = outcome(probe, data), outcome(load_image, data)
        reduced = outcome(load_reduced, data, at_least_px=8)
        assert (image is None) or (header is not None), number
        assert (image is None) == (reduced is None) or data.startswith(b"\xff\xd8"), number
        if image is not None:
            loaded += 1
            assert image.pixels.dtype == np.uint8
            assert image.pixels.shape == (header.height, header.width, 3), number
            assert 0 < image.width * image.height <= MAX_PIXELS
    # the mutations reach the decoders, and do damage
    assert 0 < loaded < MUTATIONS_OF_EACH
