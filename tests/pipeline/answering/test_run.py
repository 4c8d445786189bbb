"""The pipeline on the embedded model: caches, limits, streaming, planning."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadImage, BadInput, DoesNotFit
from vlm_edge.pipeline.answering.run import plan, source_header

PAGES = resource_dir("calibration") / "pages"
RECEIPT = PAGES / "receipt.png"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


def test_a_second_question_reuses_vision_and_the_prompt_so_far(pipeline: Pipeline) -> None:
    first = pipeline.ask(RECEIPT, "what is the total?")
    second = pipeline.ask(RECEIPT, "what is the date?")
    assert first.timings_ms["vision"] > 0
    assert second.timings_ms["vision"] == 0
    fresh = Pipeline.load().ask(RECEIPT, "what is the date?")
    assert second.text == fresh.text
    assert second.tokens == fresh.tokens


def test_questions_about_other_images_in_between_change_nothing(pipeline: Pipeline) -> None:
    alone = {}
    for page in sorted(PAGES.glob("*.png")):
        asked = json.loads(page.with_suffix(".json").read_text())["questions"]
        alone[page] = [pipeline.ask(page, entry["question"]).text for entry in asked[:3]]
    for i in range(3):
        for page, answers in alone.items():
            asked = json.loads(page.with_suffix(".json").read_text())["questions"]
            if i < len(answers):
                assert pipeline.ask(page, asked[i]["question"]).text == answers[i]


def test_pieces_add_up_to_the_answer(pipeline: Pipeline) -> None:
    pieces: list[str] = []
    answer = pipeline.ask(RECEIPT, "where is the circle?", on_text=pieces.append)
    assert "".join(pieces) == answer.text
    assert len([p for p in pieces if p]) > 3


def test_stop_strings_and_limits(pipeline: Pipeline) -> None:
    whole = pipeline.ask(RECEIPT, "what is the total?").text
    stopped = pipeline.ask(RECEIPT, "what is the total?", AskOptions(stop=(whole[2:4],)))
    assert stopped.text == whole[: whole.index(whole[2:4])]
    assert stopped.stop_reason == "stop"
    short = pipeline.ask(RECEIPT, "what is the total?", AskOptions(max_new_tokens=2))
    assert short.text == whole[:2]
    assert (short.stop_reason, short.tokens.generated) == ("length", 2)


def test_sampling_is_seeded(pipeline: Pipeline) -> None:
    def draw(seed: int) -> str:
        return pipeline.ask(
            RECEIPT, "what is the total?", AskOptions(temperature=3.0, seed=seed, max_new_tokens=12)
        ).text

    assert draw(1) == draw(1)
    assert len({draw(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize(
    ("reduce", "fewer"), [("none", False), ("threshold", True), ("random", True), ("downsample", True)]
)
def test_reductions(pipeline: Pipeline, reduce: str, fewer: bool) -> None:
    counts = pipeline.ask(RECEIPT, "what is the total?", AskOptions(reduce=reduce)).tokens
    assert (counts.visual_after < counts.visual_before) == fewer


def test_a_seed_for_sampling_alone_costs_no_vision(pipeline: Pipeline) -> None:
    asked = [pipeline.ask(RECEIPT, "what is the total?", AskOptions(temperature=0.5, seed=seed)) for seed in range(3)]
    assert [answer.timings_ms["vision"] > 0 for answer in asked[1:]] == [False, False]


def test_a_question_beyond_the_context_is_refused_before_the_image_is_decoded(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlm_edge.vision.sources.load_image", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(BadInput, match="context is 768"):
        pipeline.ask(Image.new("RGB", (300, 200)), "what is the total? " * 300)


def test_a_jpeg_for_the_global_view_alone_is_planned_and_decoded_at_reduced_scale(pipeline: Pipeline) -> None:
    data = io.BytesIO()
    Image.new("RGB", (4000, 3600), "white").save(data, "JPEG")
    found = {}
    for name, options in {"none": {"tiling": "none"}, "zero": {"max_tiles": 0}, "tiles": {}}.items():
        options = AskOptions(**options)
        headers = (source_header(data.getvalue(), 10**8),)
        found[name] = plan(pipeline.bundle, options, images=headers, budget_bytes=None)
    items = {name: {item.name: item.bytes for item in each.items} for name, each in found.items()}
    assert items["none"] == items["zero"]
    assert 20 * items["zero"]["image.decode"] < items["tiles"]["image.decode"] == 7 * 4000 * 3600 + (13 << 20)
    answer = pipeline.ask(data.getvalue(), "what color is the circle?", AskOptions(max_tiles=0))
    assert answer.tokens.visual_before == 64


def test_a_turned_pil_image_is_planned_and_answered_upright(pipeline: Pipeline) -> None:
    with Image.open(RECEIPT) as page:
        turned = page.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # shown a quarter turn to the right: upright again
    header = source_header(turned, 10**8)
    assert (header.width, header.height) == (turned.height, turned.width)
    upright = pipeline.ask(RECEIPT, "where is the circle?")
    assert pipeline.ask(turned, "where is the circle?").boxes == upright.boxes


def test_a_pil_image_beyond_the_limits_is_refused_before_it_is_decoded() -> None:
    data = io.BytesIO()
    Image.new("L", (9000, 9000)).save(data, "PNG")
    with Image.open(data) as large:
        with pytest.raises(DoesNotFit, match="preprocess needs"):
            Pipeline.load(budget="300MiB").ask(large, "what is the total?")
        with pytest.raises(BadImage, match="1000"):
            Pipeline.load().ask(large, "what is the total?", AskOptions(max_pixels=1000))
        assert getattr(large, "_im", None) is None


def test_the_embedded_bundle_tells_nothing_of_the_machine_that_made_it(pipeline: Pipeline) -> None:
    for artifact in pipeline.bundle.manifest.artifacts:
        assert b"site-packages" not in (pipeline.bundle.root / artifact.path).read_bytes()


def test_no_image_is_no_index_error(pipeline: Pipeline) -> None:
    with pytest.raises(BadInput, match="no image"):
        pipeline.ask([], "what is the total?")


def test_tiling_none_and_grid(pipeline: Pipeline) -> None:
    assert pipeline.ask(RECEIPT, "what is the total?", AskOptions(tiling="none")).tiles == ()
    grid = pipeline.ask(RECEIPT, "what is the total?", AskOptions(tiling="grid"))
    assert [tile.box[:2] for tile in grid.tiles[:2]] == [(0, 0), (112, 0)]


@pytest.mark.parametrize("size", [(1, 1), (5, 400), (3000, 8), (112, 112), (113, 111)])
def test_odd_sizes(pipeline: Pipeline, size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    answer = pipeline.ask(noise, "how many circles are there?")
    assert answer.tokens.visual_before == 64 * (1 + len(answer.tiles))


def test_an_image_beyond_the_budget_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    large = tmp_path / "large.jpg"  # which is decoded whole
    Image.new("L", (9000, 9000)).save(large)
    small = Pipeline.load(budget="300MiB")
    assert small.ask(RECEIPT, "what is the total?").text
    with pytest.raises(DoesNotFit, match="preprocess needs"):
        small.ask(large, "what is the total?")


def test_more_images_than_the_bundle_takes(pipeline: Pipeline) -> None:
    with pytest.raises(BadInput, match="1 image"):
        pipeline.ask([RECEIPT, RECEIPT], "what is the total?")


def test_interrupting_leaves_the_pipeline_usable(pipeline: Pipeline) -> None:
    expected = pipeline.ask(RECEIPT, "where is the circle?").text

    def interrupt(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipeline.ask(RECEIPT, "where is the circle?", on_text=interrupt)
    assert pipeline.ask(RECEIPT, "where is the circle?").text == expected


def test_the_plan_bounds_what_was_measured() -> None:
    """In a fresh process, since the peak of this one belongs to all tests before."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "vlm_edge", "run", str(RECEIPT), "what is the total?", "--json"]
    memory = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["memory"]
    assert memory["measured_peak_bytes"] <= memory["planned_peak_bytes"] < 2 * memory["measured_peak_bytes"]


def test_memory_stays_flat_over_many_questions(pipeline: Pipeline) -> None:
    from vlm_edge.core.host import peak_rss_bytes

    pages = sorted(PAGES.glob("*.png"))
    for i in range(20):
        pipeline.ask(pages[i % len(pages)], "what is the total?")
    before = peak_rss_bytes()
    for i in range(120):
        pipeline.ask(pages[i % len(pages)], f"what is the {['total', 'date', 'id'][i % 3]}?")
    assert peak_rss_bytes() - before < 4 << 20
