"""Fingerprints: images that look different have different ones, however alike their stored pixels are."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.image_bytes import encode, noise
from vlm_edge.errors import BadImage
from vlm_edge.vision.fingerprint import fingerprint
from vlm_edge.vision.sources import load_image

ORIENTATION = 274  # EXIF tag


def indexed(palette: list[int], **info: object) -> Image.Image:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) % 4, "L")
    image = image.copy()
    made = Image.frombytes("P", image.size, image.tobytes())
    made.putpalette(palette)
    made.info.update(info)
    return made


def turned(orientation: int, size: tuple[int, int] = (12, 8)) -> Image.Image:
    image = Image.fromarray(noise(size[1], size[0]))
    image.getexif()[ORIENTATION] = orientation
    return image


GREYS, COLOURS = [0, 0, 0, 80, 80, 80, 160, 160, 160, 255, 255, 255], [255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9]
LOOK_DIFFERENT: list[tuple[Callable[[], Image.Image], Callable[[], Image.Image]]] = [
    (lambda: indexed(GREYS), lambda: indexed(COLOURS)),
    (lambda: indexed(COLOURS), lambda: indexed(COLOURS, transparency=0)),
    (lambda: indexed(COLOURS, transparency=0), lambda: indexed(COLOURS, transparency=1)),
    (lambda: indexed(COLOURS), lambda: indexed(COLOURS, transparency=bytes([0, 255, 128, 255]))),
    *((lambda: turned(1), lambda o=o: turned(o)) for o in range(2, 9)),
    # the pixels of these two are the same once upright, but tiles and boxes are told in the stored size
    (lambda: Image.new("RGB", (8, 12), "red"), lambda: Image.new("RGB", (12, 8), "red")),
    (lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 0)), lambda: Image.new("RGBA", (4, 4), (0, 0, 0, 255))),
    (lambda: Image.new("I", (4, 4), 20_000), lambda: Image.new("I", (4, 4), 60_000)),
]  # fmt: skip


@pytest.mark.parametrize(("one", "other"), LOOK_DIFFERENT)
def test_images_that_look_different_are_told_apart(
    one: Callable[[], Image.Image], other: Callable[[], Image.Image]
) -> None:
    assert not np.array_equal(load_image(one()).pixels, load_image(other()).pixels)
    assert fingerprint(one()) != fingerprint(other())
    assert fingerprint(one()) == fingerprint(one())


def test_a_turned_image_that_looks_like_another_still_has_its_own_size() -> None:
    """The cache that these are keys of holds the size that the image was said to have."""
    plain, turned_red = Image.new("RGB", (8, 12), "red"), Image.new("RGB", (12, 8), "red")
    turned_red.getexif()[ORIENTATION] = 6
    assert np.array_equal(load_image(plain).pixels, load_image(turned_red).pixels)
    assert fingerprint(plain) != fingerprint(turned_red)


def test_the_same_array_has_the_same_fingerprint_whatever_its_memory_layout() -> None:
    pixels = noise(12, 8)
    assert fingerprint(pixels) == fingerprint(np.asfortranarray(pixels)) == fingerprint(pixels.copy())
    assert fingerprint(pixels) != fingerprint(pixels.swapaxes(0, 1))
    assert fingerprint(pixels.reshape(6, 16, 3)) != fingerprint(pixels)
    changed = pixels.copy()
    changed[5, 5, 1] ^= 1
    assert fingerprint(changed) != fingerprint(pixels)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "GIF"])
def test_a_cut_file_that_was_opened_but_not_read_is_a_bad_image(kind: str) -> None:
    data = encode(Image.fromarray(noise(200, 200)), kind)
    opened = Image.open(io.BytesIO(data[: len(data) // 2]))
    with pytest.raises(BadImage, match="damaged or cut short"):
        fingerprint(opened)


def test_a_closed_image_is_a_bad_image() -> None:
    opened = Image.open(io.BytesIO(encode(Image.fromarray(noise()))))
    opened.close()
    with pytest.raises(BadImage):
        fingerprint(opened)


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.float32), np.array([[None, "x"]], object), np.zeros((0, 4, 3), np.uint8), np.zeros(3)]
)
def test_arrays_that_are_no_images_are_refused(array: np.ndarray) -> None:
    with pytest.raises(BadImage):
        fingerprint(array)


def test_files_are_known_by_their_bytes() -> None:
    data = encode(Image.fromarray(noise()))
    assert fingerprint(data) == fingerprint(io.BytesIO(data))
    assert fingerprint(data) != fingerprint(data + b"\0")
