"""Where images come from, how large they may be, and what is refused, and how."""

import io
import os
import struct
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.image_bytes import encode, noise, png
from vlm_edge.errors import BadImage
from vlm_edge.vision import sources
from vlm_edge.vision.sources import load_image, load_reduced, probe

LOSSLESS = ["PNG", "TIFF", "BMP", "PPM", "WEBP"]


class Pipe(io.RawIOBase):
    """Bytes that can be read once and not sought, like standard input behind a pipe."""

    def __init__(self, data: bytes) -> None:
        self.rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        return self.rest.readinto(buffer)


# ---- where the bytes come from


@pytest.mark.parametrize("kind", LOSSLESS)
def test_every_lossless_format_gives_the_pixels_that_went_in(kind: str, tmp_path: Path) -> None:
    pixels = noise()
    path = tmp_path / "wrong-extension.jpg"
    path.write_bytes(encode(Image.fromarray(pixels), kind))
    image = load_image(path)
    assert image.pixels.dtype == np.uint8
    assert image.pixels.flags.c_contiguous
    np.testing.assert_array_equal(image.pixels, pixels)
    assert (image.width, image.height, image.format, image.name) == (19, 13, kind, str(path))
    header = probe(path)
    assert (header.width, header.height, header.format, header.mode) == (19, 13, kind, "RGB")


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    pixels = noise()
    data = encode(Image.fromarray(pixels))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    stream = io.BytesIO(data)
    stream.seek(7)
    with path.open("rb") as file:
        for source in (
            path,
            str(path),
            data,
            bytearray(data),
            stream,
            file,
            Pipe(data),
            Image.fromarray(pixels),
            pixels,
        ):
            np.testing.assert_array_equal(load_image(source).pixels, pixels)
            np.testing.assert_array_equal(load_reduced(source, at_least_px=5), pixels)
        assert not file.closed
    assert not stream.closed


def test_jpeg_is_close_to_what_went_in() -> None:
    ramp = np.stack(np.broadcast_arrays(*np.ogrid[0:64, 0:96], 128), axis=2).astype(np.uint8)
    loaded = load_image(encode(Image.fromarray(ramp), "JPEG", quality=95, subsampling=0)).pixels
    assert np.abs(loaded.astype(int) - ramp).max() <= 4


def test_standard_input_can_be_probed_and_then_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Pipe(encode(Image.fromarray(pixels))))))
    assert probe("-").width == 19
    image = load_image("-")
    np.testing.assert_array_equal(image.pixels, pixels)
    assert image.name == "standard input"


def test_a_pipe_is_read_up_to_a_limit_and_refused_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_STREAM_BYTES", 100)
    pipe = Pipe(encode(Image.fromarray(noise(60, 60))))
    for _ in range(2):
        with pytest.raises(BadImage):
            load_image(pipe)
    with pytest.raises(BadImage, match="longer than 100 bytes"):
        load_image(Pipe(bytes(101)))


def test_the_encoded_bytes_can_be_had_again_and_again(tmp_path: Path) -> None:
    data = encode(Image.fromarray(noise()))
    path = tmp_path / "a.png"
    path.write_bytes(data)
    for source in (path, data, io.BytesIO(data), Pipe(data)):
        for _ in range(2):
            with sources.open_stream(source) as stream:
                assert stream.read() == data
        assert load_image(source).width == 19
    with sources.open_stream(path) as file:
        pass
    assert file.closed
    with pytest.raises(BadImage, match="does not exist"), sources.open_stream(tmp_path / "gone"):
        pass


def test_an_array_that_is_rgb_is_shared_and_grey_is_spread() -> None:
    pixels = noise()
    assert load_image(pixels).pixels is pixels
    assert load_image(pixels[:, ::-1]).pixels.flags.c_contiguous
    np.testing.assert_array_equal(load_image(pixels[:, :, 1]).pixels, np.stack([pixels[:, :, 1]] * 3, axis=2))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), bool), np.zeros((4, 4, 4), np.uint8),
        np.zeros(4, np.uint8), np.zeros((3, 4, 4), np.uint8), np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((0, 4, 3), np.uint8), np.zeros((4, 0), np.uint8), np.uint8(3).reshape(()),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)  # fmt: skip
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(BadImage):
        load_image(array)


# ---- the pixel limit


@pytest.mark.parametrize("call", [probe, load_image, lambda source: load_reduced(source, at_least_px=4)])
def test_a_header_that_lies_about_its_size_is_refused_before_decoding(call: object) -> None:
    data = png(100_000, 100_000, depth=8, colour=2, rows=b"\0\1\2\3")
    start = time.process_time()
    with pytest.raises(BadImage, match=r"10000000000 pixels.*limit of 400000000") as caught:
        call(data)
    assert "--max-pixels" in caught.value.remedy
    assert time.process_time() - start < 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_the_limit_is_exact(kind: str) -> None:
    data = encode(Image.fromarray(noise(15, 17)), kind)
    assert load_image(data, max_pixels=15 * 17).width == 17
    for call in (probe, load_image):
        with pytest.raises(BadImage, match=r"255 pixels.*limit of 254"):
            call(data, max_pixels=15 * 17 - 1)
    with pytest.raises(BadImage):
        load_reduced(data, at_least_px=1, max_pixels=15 * 17 - 1)


def test_the_limit_holds_for_images_and_arrays_too() -> None:
    for source in (noise(15, 17), Image.fromarray(noise(15, 17))):
        assert load_image(source, max_pixels=255).width == 17
        with pytest.raises(BadImage, match="17 x 15 = 255 px; the limit is 254") as caught:
            load_image(source, max_pixels=254)
        assert "--max-pixels" in caught.value.remedy


def test_pillows_own_limit_neither_warns_nor_refuses_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    for own in (100, 150, None):  # an error, a warning, nothing
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", own)
        filters = list(warnings.filters)
        for kind in ("PNG", "TIFF", "WEBP", "GIF"):
            assert load_image(encode(Image.new("RGB", (17, 15)), kind)).width == 17
            with pytest.raises(BadImage):
                load_image(b"GIF89a junk")
        assert own == Image.MAX_IMAGE_PIXELS
        assert filters == warnings.filters


def test_threads_with_different_limits_do_not_disturb_one_another() -> None:
    data = [encode(Image.fromarray(noise(40, 40)), kind) for kind in ("PNG", "TIFF", "WEBP")]
    before, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    wrong: list[str] = []

    def work(limit: int) -> None:
        for _ in range(15):
            for item in data:
                try:
                    load_image(item, max_pixels=limit)
                    outcome = "loaded"
                except BadImage:
                    outcome = "refused"
                if outcome != ("loaded" if limit >= 1600 else "refused"):
                    wrong.append(f"{limit}: {outcome}")

    threads = [threading.Thread(target=work, args=(limit,)) for limit in (1, 1599, 1600, 10**9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert before == Image.MAX_IMAGE_PIXELS
    assert filters == warnings.filters


def test_run_length_coded_bmp_cannot_keep_the_decoder_busy() -> None:
    header = b"BM" + struct.pack("<IHHI", 0, 0, 0, 14 + 40 + 1024)
    palette = bytes(range(256)) * 4
    dib = struct.pack("<IiiHHIIiiII", 40, 300_000_000, 1, 1, 8, 1, 0, 0, 0, 256, 0)
    start = time.process_time()
    with pytest.raises(BadImage, match="run-length"):
        load_image(header + dib + palette + b"\x01\x05\x00\x00\x00\x01")
    assert time.process_time() - start < 1


PEAK = """
import io, sys
import numpy as np
from PIL import Image
from vlm_edge.vision.sources import load_image
from pathlib import Path
def peak_bytes():
    status = Path("/proc/self/status").read_text().split()
    return 1024 * int(status[status.index("VmHWM:") + 1])
out = io.BytesIO()
Image.effect_noise((64, 64), 50).convert(sys.argv[1]).save(out, sys.argv[2])
load_image(out.getvalue())
data = Path(sys.argv[3]).read_bytes()
before = peak_bytes()
pixels = load_image(data).pixels
print((peak_bytes() - before) / (pixels.size // 3))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize(("mode", "kind"), [("RGB", "PNG"), ("RGBA", "PNG"), ("F", "TIFF"), ("RGB", "JPEG")])
def test_peak_memory_stays_below_three_copies(mode: str, kind: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "large"
    image = Image.linear_gradient("L").resize((4000, 3000)).convert(mode)
    image.save(path, kind, **({} if kind == "TIFF" else {"exif": exif}))
    done = subprocess.run([sys.executable, "-c", PEAK, mode, kind, path], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3 * 3 + 2.5  # bytes per pixel; a band of 2 MiPx is not small beside 12 MPx


# ---- what cannot be loaded


def refused(source: object, match: str | None = None) -> BadImage:
    with pytest.raises(BadImage, match=match) as caught:
        load_image(source)
    assert caught.value.remedy
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value


def test_paths_that_are_no_image(tmp_path: Path) -> None:
    refused(tmp_path, f"{tmp_path} is a folder")
    error = refused(tmp_path / "gone.png", "gone.png does not exist")
    assert isinstance(error.__cause__, FileNotFoundError)
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty.png is empty")
    (tmp_path / "text.png").write_text("these are words")
    refused(str(tmp_path / "text.png"), "text.png is no PNG/JPEG")
    refused("", "'' is a folder")
    refused("a\0b", "damaged")
    refused(tmp_path / "two\nlines.png", r"two\\nlines.png' does not exist")
    refused(tmp_path / ("x" * 300), "x")


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "pipe is a folder or device")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.fromarray(noise())))

    def deny(*_args: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", deny)  # chmod would not stop root, who runs tests in containers
    assert "chmod" in refused(path, "secret.png may not be read").remedy


@pytest.mark.parametrize("source", [None, 3, object(), [1, 2], io.StringIO("text"), io.StringIO("")])
def test_things_that_are_no_source(source: object) -> None:
    refused(source)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_files_cut_short(kind: str, share: float) -> None:
    data = encode(Image.fromarray(noise(40, 40)), kind)
    error = refused(data[: int(len(data) * share)], "damaged|cut short")
    assert error.__cause__ is not None


def test_headers_without_pixels() -> None:
    refused(png(0, 5, depth=8, colour=2, rows=b"\0"), "header is damaged")
    refused(Image.new("RGB", (0, 5)), "has no pixels")
    refused(b"P6 0 4 255\n", "header is damaged")


def test_a_closed_image_or_stream_is_refused() -> None:
    stream = io.BytesIO(encode(Image.fromarray(noise())))
    image = Image.open(stream)
    image.close()
    refused(image)
    stream.close()
    refused(stream)


def test_memory_that_runs_out_is_an_error_about_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_args: object) -> None:
        raise MemoryError

    data = encode(Image.fromarray(noise()))
    monkeypatch.setattr(Image.Image, "crop", exhausted)
    assert isinstance(refused(data, "more memory").__cause__, MemoryError)


@pytest.mark.parametrize(
    "head", [b"%PDF-1.7\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"SIMPLE  =                    T", b"\0\0\1\0\1\0"]
)
def test_formats_outside_the_list_are_never_opened(head: bytes) -> None:
    refused(head + bytes(200), "is no PNG/JPEG")


def test_nothing_sets_pillow_to_accept_truncated_files() -> None:
    from PIL import ImageFile

    load_image(encode(Image.fromarray(noise())))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
