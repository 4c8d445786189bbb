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
from vlm_edge.pipeline.explaining.explain import explain_answer
from vlm_edge.pipeline.explaining.picture import BOX
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


PLACES: dict[str, tuple[str, str, str]] = {
    "llava": ("a cat [0.25, 0.25, 0.75, 0.75]", "60, 15, 90, 45", "a cat"),
    "llava_next": ("a cat [0.2, 0.1, 0.6, 0.5]", "30, 6, 90, 30", "a cat"),
    "internvl": ("<ref>a cat</ref><box>[[200, 100, 600, 500]]</box>", "30, 6, 90, 30", "a cat"),
    "idefics2": ('<point x="20" y="50" alt="a cat">a cat</point>', "30, 30", "a cat"),
    "idefics3": ("<box>200, 100, 600, 500</box>", "30, 6, 90, 30", "-"),
    "paligemma": ("<loc0102><loc0205><loc0512><loc0614> a cat", "30, 6, 90, 30", "a cat"),
    "qwen2_vl": ("a cat(200,100),(600,500)", "30, 6, 90, 30", "a cat"),
    "qwen2_5_vl": ('[{"bbox_2d": [28, 14, 84, 28], "label": "a cat"}]', "", "a cat"),
}
"""What a model of each family would write of a 150 x 60 px image; the pixels that it means, and its label.

LLaVA's view is the middle square of 60 px; Qwen2.5-VL counts in pixels of its own size of the image, which the test asks for.
"""


@pytest.mark.parametrize("family", PLACES)
def test_what_a_family_writes_is_drawn_and_listed(
    family: str, tmp_path: Path, asked: list[Frames], monkeypatch: pytest.MonkeyPatch
) -> None:
    written, expected, label = PLACES[family]
    pipeline, _ = runnable.make(family, tmp_path).pipeline()
    image, geometry = photo(WIDTH, HEIGHT), pipeline.bundle.manifest.model.geometry
    says = {"text": "nothing here"}
    monkeypatch.setattr(pipeline, "_decode", lambda *_: (says["text"], 3, "eos"))
    without = pipeline.ask(image, "where?")
    says["text"] = written
    answer = pipeline.ask(image, "where?")
    if family == "qwen2_5_vl":
        width, height = asked[-1].canvas_px
        expected = ", ".join(
            str(round(v * e / c)) for v, e, c in zip((28, 14, 84, 28), (150, 60) * 2, (width, height) * 2, strict=True)
        )
    assert len(answer.boxes) + len(answer.points) == 1
    assert not any(item.clipped for item in (*answer.boxes, *answer.points))
    inked = []
    for name, shown in (("without", without), ("with", answer)):
        explain_answer(image, shown, tmp_path / f"{name}.png", geometry=geometry, question="where?")
        with Image.open(tmp_path / f"{name}.png") as picture:
            inked.append(int((np.asarray(picture.convert("RGB")) == BOX).all(axis=2).sum()))
    assert inked[0] < inked[1]
    assert inked[1] - inked[0] > 100
    explain_answer(image, answer, tmp_path / "with.html", geometry=geometry, question="where?")
    page = (tmp_path / "with.html").read_text()
    assert f"<td>{label}</td><td>{expected}</td>" in page
    assert page.count("data:image/png;base64,") == 1
    assert "://" not in page
