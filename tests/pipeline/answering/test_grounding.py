"""From an answer's coordinates to source pixels through the pipeline: what each family's preprocessing spans."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import runnable
from tests.models.pictures import photo
from vlm_edge import AskOptions, Pipeline
from vlm_edge.pipeline.answering import run
from vlm_edge.vision.grounding import Frames, find_places

WIDTH, HEIGHT = 150, 60


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Frames]:
    """The frames of every answer; none of these random models names a place of its own accord."""
    frames: list[Frames] = []

    def watched(text: str, dialects: Any, given: Frames) -> Any:
        frames.append(given)
        return find_places(text, dialects, given)

    monkeypatch.setattr(run, "find_places", watched)
    return frames


@pytest.mark.parametrize("family", ["qwen2_5_vl", "paligemma", "internvl", "llava", "llava_next"])
def test_coordinates_span_what_the_encoder_saw(family: str, tmp_path: Path, asked: list[Frames]) -> None:
    made = runnable.make(family, tmp_path)
    image = photo(WIDTH, HEIGHT)
    pipeline, _ = made.pipeline()
    pipeline.ask(image, "where?", AskOptions(max_new_tokens=1))
    (frames,) = asked
    assert frames.image_px == (WIDTH, HEIGHT)
    if family == "qwen2_5_vl":  # transformers' own size after resizing, in patches
        _, rows, cols = made.inputs("where?", [image])["image_grid_thw"][0].tolist()
        patch = made.processor.image_processor.patch_size
        assert frames.canvas_px == (cols * patch, rows * patch)
        assert frames.canvas_px != frames.image_px
    if family == "llava":  # CLIP's processor shows the middle square alone
        assert frames.view == pytest.approx((45, 0, 105, 60))
    elif family != "qwen2_5_vl":
        assert frames.view == pytest.approx((0, 0, WIDTH, HEIGHT))


def test_a_jpeg_that_was_decoded_at_reduced_scale_is_told_in_its_own_pixels(
    tmp_path: Path, asked: list[Frames]
) -> None:
    Image.fromarray(np.zeros((3000, 4000, 3), np.uint8)).save(tmp_path / "large.jpg")
    Pipeline.load(threads=1).ask(tmp_path / "large.jpg", "where is the circle?", AskOptions(max_tiles=0))
    assert asked[0].image_px == (4000, 3000)
    assert asked[0].view == pytest.approx((0, 0, 4000, 3000))


def test_the_embedded_models_boxes_come_from_its_tags() -> None:
    from vlm_edge.core.resources import resource_dir

    answer = Pipeline.load(threads=1).ask(resource_dir("calibration") / "pages/receipt.png", "where is the circle?")
    numbers = [int(part) for part in answer.text.split("<box>")[1].split("</box>")[0].split(",")]
    (item,) = answer.boxes
    assert item.box == tuple(round(n / 1000 * edge) for n, edge in zip(numbers, (1322, 1344) * 2, strict=True))
    assert not item.clipped
