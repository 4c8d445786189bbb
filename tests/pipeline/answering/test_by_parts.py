"""Images that are read by parts: the same answer, tokens and tiles as from the whole, in less memory, as planned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import runnable
from tests.runnable import PREPROCESSOR, QUESTIONS, VARIANTS, Runnable
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.geometry import PatchGeometry
from vlm_edge.errors import BadImage
from vlm_edge.pipeline.answering import question_plan
from vlm_edge.pipeline.answering.options import Look
from vlm_edge.pipeline.answering.question_plan import open_picture, plan, source_header
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.explaining.explain import explain_answer
from vlm_edge.vision import bands, saliency, sources
from vlm_edge.vision.raster import FileRaster
from vlm_edge.vision.tiling import Tile

PAGE = Path(__file__).parents[3] / "calibration/pages/receipt.png"
QUESTION = "what is the total?"
SMALL = 1 << 16


@pytest.fixture
def by_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images of any size are read by parts, in bands of a few rows."""
    monkeypatch.setattr(question_plan, "PARTS_FROM_PX", 0)
    monkeypatch.setattr(bands, "BAND_PX", SMALL)


def saved(folder: Path, name: str, image: Image.Image) -> Path:
    path = folder / name
    if name.endswith("tiled.tif"):
        image.save(path, compression="tiff_deflate", tile=(64, 64))
    elif name.endswith(".tif"):
        image.save(path, compression="tiff_lzw", strip_size=3 * image.width * 16)
    else:
        image.save(path)
    return path


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load(threads=1)


LOOKS = {
    "salient": AskOptions(),
    "network": AskOptions(saliency="cnn"),
    "novelty": AskOptions(saliency="novelty"),
    "grid": AskOptions(tiling="grid"),
    "whole": AskOptions(tiling="none"),
    "given": AskOptions(tiles=((10, 900, 122, 1012), (500, 3, 612, 115))),
}


@pytest.mark.parametrize(
    ("kind", "look"), [*(("page.png", look) for look in LOOKS), ("page.ppm", "salient"), ("page.tif", "salient")]
)
def test_nano_sees_the_same(
    pipeline: Pipeline, tmp_path: Path, kind: str, look: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, kind, Image.open(PAGE).convert("RGB"))
    pipeline.forget()
    whole = pipeline.ask(path, QUESTION, LOOKS[look])
    runs = next(iter(pipeline._cache._items.values())).runs
    pipeline.forget()
    monkeypatch.setattr(question_plan, "PARTS_FROM_PX", 0)
    monkeypatch.setattr(bands, "BAND_PX", SMALL)
    monkeypatch.setattr("vlm_edge.vision.sources._decode", lambda *_: pytest.fail("decoded as a whole"))
    parts = pipeline.ask(path, QUESTION, LOOKS[look])
    assert (parts.text, parts.tiles, parts.tokens) == (whole.text, whole.tiles, whole.tokens)
    for one, other in zip(next(iter(pipeline._cache._items.values())).runs, runs, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("by_parts")
@pytest.mark.parametrize("family", [family for family in runnable.SPECIAL if family != "idefics2"])
def test_every_family_makes_the_same_views(family: str, tmp_path: Path) -> None:
    """By its own rules, as a whole, and with chosen tiles, for a page, a strip and a column."""
    made = runnable.make(family, tmp_path)
    views = made.pipeline()[0]._prompt.views
    page = np.asarray(Image.open(PAGE).convert("RGB"))
    for number, pixels in enumerate((page[:400, :301], page[300:340], page[:, 200:212])):
        path = saved(tmp_path, f"{number}.png", Image.fromarray(pixels))
        height, width = pixels.shape[:2]
        raster = FileRaster(path, width, height)
        asked: list[dict[str, object]] = [{}, {"whole": True}]
        for scale in views.geometry.scales((width, height)):
            asked.append({"layout": views.geometry.subset((width, height), scale, [(0, scale.cols - 1)])})
        for given in asked:
            expected, found = views.prepare(pixels, **given), views.prepare(raster, **given)
            assert (found.boxes, found.layout, found.frame) == (expected.boxes, expected.layout, expected.frame)
            for name, array in expected.arrays.items():
                np.testing.assert_array_equal(found.arrays[name], array)


@pytest.mark.usefixtures("by_parts")
def test_a_padded_square_is_the_same_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    padding = replace(VARIANTS["llava"], preprocessor={"image_processor_type": "LlavaImageProcessor", "do_pad": True})
    monkeypatch.setitem(VARIANTS, "llava", padding)
    assert "do_pad" not in PREPROCESSOR["llava"]
    views = runnable.make("llava", tmp_path).pipeline()[0]._prompt.views
    pixels = np.asarray(Image.open(PAGE).convert("RGB"))[:300, :140]
    raster = FileRaster(saved(tmp_path, "page.png", Image.fromarray(pixels)), 140, 300)
    expected = views.prepare(pixels).arrays["pixel_values"]
    np.testing.assert_array_equal(views.prepare(raster).arrays["pixel_values"], expected)


class Means:
    """A saliency model of stride 8 whose values depend on a cell alone."""

    stride_px = 8

    def run(self, pixels: np.ndarray) -> np.ndarray:
        n, _, height, width = pixels.shape
        return pixels.mean(1).reshape(n, height // 8, 8, width // 8, 8).mean((2, 4))


@pytest.mark.usefixtures("by_parts")
def test_a_network_sees_the_same_blocks(tmp_path: Path) -> None:
    pixels = np.asarray(Image.open(PAGE).convert("RGB"))
    raster = FileRaster(saved(tmp_path, "page.png", Image.fromarray(pixels)), pixels.shape[1], pixels.shape[0])
    expected = saliency.cnn(pixels, Means(), cell_px=7)
    np.testing.assert_array_equal(saliency.cnn(raster, Means(), cell_px=7), expected)


def test_only_large_images_in_such_formats_are_read_by_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Image.open(PAGE).convert("RGB")
    path = saved(tmp_path, "page.png", page)
    assert source_header(path, 1 << 30).band_px == 0
    monkeypatch.setattr(question_plan, "PARTS_FROM_PX", page.width * page.height - 1)
    assert source_header(path, 1 << 30).band_px == bands.BAND_PX // page.width * page.width
    page.save(tmp_path / "page.jpg")
    assert source_header(tmp_path / "page.jpg", 1 << 30).band_px == 0
    assert source_header(np.asarray(page), 1 << 30).band_px == 0
    assert source_header(page, 1 << 30).band_px == 0
    tiled = saved(tmp_path, "strips.tif", page)
    assert source_header(tiled, 1 << 30).band_px == 16 * page.width


def test_the_plan_does_not_grow_with_the_image() -> None:
    bundle = open_bundle(NANO)
    header = source_header(PAGE, 1 << 30)

    def reading(side: int, band_px: int) -> int:
        large = replace(header, width=side, height=side, band_px=band_px)
        planned = plan(bundle, AskOptions(), images=(large,), budget_bytes=1 << 40)
        return next(item.bytes for item in planned.items if item.name == "image.decode")

    assert reading(20_000, 0) == 7 * 20_000**2 + (13 << 20)
    assert reading(20_000, 1 << 20) < 200 << 20
    assert reading(20_000, 1 << 20) - reading(10_000, 1 << 20) < 60 << 20


@pytest.mark.usefixtures("by_parts")
def test_damage_behind_the_header_is_told_as_ever(tmp_path: Path, pipeline: Pipeline) -> None:
    path = saved(tmp_path, "page.png", Image.open(PAGE).convert("RGB"))
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(BadImage, match=r"page\.png is damaged or cut short"):
        pipeline.ask(path, QUESTION)


@pytest.mark.usefixtures("by_parts")
def test_a_family_that_needs_the_whole_gets_it(tmp_path: Path) -> None:
    made: Runnable = runnable.make("idefics2", tmp_path)
    path = saved(tmp_path, "page.png", Image.open(PAGE).convert("RGB"))
    look = Look("grid", 4, "none", 1.0, 1.0, 0)
    header = source_header(path, 1 << 30)
    assert isinstance(open_picture(made.bundle, path, header, look, 1 << 30), np.ndarray)
    pipeline, _ = made.pipeline()
    assert pipeline.ask(path, QUESTIONS[0], AskOptions(max_new_tokens=1)).tokens.visual_before > 0


@pytest.mark.usefixtures("by_parts")
def test_a_picture_of_it_is_made_by_parts_too(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--explain shows what it does of the whole image, and never holds that."""
    answer, geometry = pipeline.ask(PAGE, QUESTION), pipeline.bundle.manifest.model.geometry
    own = tuple(Tile(x, y, x + 661, y + 672, 0.0) for y in (0, 672) for x in (0, 661))
    cut = replace(answer, tiles=own, members=(), views=(*(tile.box for tile in own), (0, 0, 1322, 1344)))
    patches = PatchGeometry(448, (16, 16), patch_px=14, merge=2, min_pixels=3136, max_pixels=12_845_056)
    for shown, by in ((answer, geometry), (cut, geometry), (cut, patches)):
        pictures = []
        for image in (np.asarray(Image.open(PAGE).convert("RGB")), PAGE):
            with monkeypatch.context() as patch:
                if image is PAGE:
                    patch.setattr(sources, "load_image", lambda *_, **__: pytest.fail("decoded whole"))
                explain_answer(image, shown, tmp_path / "seen.png", geometry=by, question=QUESTION)
            pictures.append(np.asarray(Image.open(tmp_path / "seen.png").convert("L"), np.float64))
        whole, parts = pictures
        assert whole.shape == parts.shape
        assert np.abs(whole - parts).mean() < 0.5
        assert np.corrcoef(whole.ravel(), parts.ravel())[0, 1] > 0.99
