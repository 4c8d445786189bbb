"""Held-out sets of the nano model: drawn pages, true answers, tiles that show the line, and the report over them."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from recipes.nano import evaluate, held_out, pages
from recipes.nano.fonts import FontsMissing, check_fonts
from recipes.nano.labels import TileBox
from recipes.nano.pages import VIEW_PX, draw_page
from recipes.nano.questions import TASKS, visibility
from tests.fake_pipeline import FakePipeline
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.evaluating.metrics import boxes_of
from vlm_edge.pipeline.evaluating.rows import EvalRow, read_rows

SEED, PAGES = 1_234_567, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        check_fonts()
    except FontsMissing as missing:
        pytest.skip(str(missing))
    out = tmp_path_factory.mktemp("held out")
    made = held_out.make(out, pages=PAGES, seed=SEED)
    assert made.pages == PAGES
    return out


@pytest.fixture(scope="module")
def rows(folder: Path) -> tuple[EvalRow, ...]:
    return read_rows(folder / "questions.jsonl", need_tiles=True)


def test_pages_are_those_of_the_seed_and_index(folder: Path) -> None:
    for index in range(PAGES):
        page = draw_page(np.random.default_rng((SEED, index)))
        with Image.open(folder / "pages" / f"{index:04d}.png") as stored:
            assert np.array_equal(np.asarray(stored), page.image)


def test_every_task_is_asked_and_counted(folder: Path, rows: tuple[EvalRow, ...]) -> None:
    about = json.loads((folder / "about.json").read_text())
    assert set(about["questions"]) == set(TASKS)
    assert about["questions"] == {task: sum(row.task == task for row in rows) for task in TASKS}
    assert {row.task for row in rows} >= {"value", "count", "absent", "other"}


def test_answers_are_what_stands_on_the_page(rows: tuple[EvalRow, ...]) -> None:
    for index in range(PAGES):
        page = draw_page(np.random.default_rng((SEED, index)))
        own = [row for row in rows if row.image == f"pages/{index:04d}.png"]
        readable = [line.value for line in page.lines if line.box[2] <= page.width and line.box[0] >= 0]
        assert sorted(row.answer for row in own if row.task == "value") == sorted(readable)
        for row in own:
            words = row.question.lower()
            if row.task == "value":
                assert any(line.key in words and line.value == row.answer for line in page.lines)
            elif row.task == "color":
                assert any(shape.kind in words and shape.color == row.answer for shape in page.shapes)
            elif row.task == "absent":
                assert not any(line.key in words for line in page.lines)


def test_a_value_can_be_read_through_its_tiles(rows: tuple[EvalRow, ...]) -> None:
    for row in (row for row in rows if row.task == "value"):
        index = int(Path(row.image).stem)
        page = draw_page(np.random.default_rng((SEED, index)))
        line = next(line for line in page.lines if line.value == row.answer)
        assert row.tiles is not None
        assert visibility(line, [TileBox(x0, y0) for x0, y0, _, _ in row.tiles]) is True
        assert ("long" in row.stratum) == (line.box[2] - line.box[0] > VIEW_PX)


def test_tiles_fit_page_view_and_limit(folder: Path, rows: tuple[EvalRow, ...]) -> None:
    for row in rows:
        with Image.open(folder / row.image) as page:
            width, height = page.size
        assert row.tiles is not None
        assert len(row.tiles) <= held_out.MAX_TILES
        for x0, y0, x1, y1 in row.tiles:
            assert (x1 - x0, y1 - y0) == (VIEW_PX, VIEW_PX)
            assert x0 >= 0
            assert y0 >= 0
            assert x1 <= width
            assert y1 <= height


def test_boxes_hold_the_shape_that_is_asked_for(rows: tuple[EvalRow, ...]) -> None:
    for row in (row for row in rows if row.task == "where"):
        page = draw_page(np.random.default_rng((SEED, int(Path(row.image).stem))))
        shape = next(shape for shape in page.shapes if shape.kind in row.question.lower())
        (box,) = boxes_of(row.answer) or [(0, 0, 0, 0)]
        extents = (page.width, page.height) * 2
        assert all(abs(1000 * v / e - b) <= 5.5 for v, e, b in zip(shape.box, extents, box, strict=True))


def test_seeds_of_training_and_samples_are_refused(tmp_path: Path) -> None:
    for seed in (0, 7, 999_999, 2_000_000, 2**32):
        with pytest.raises(BadInput, match="training"):
            held_out.make(tmp_path, pages=1, seed=seed)
    assert list(tmp_path.iterdir()) == []


def test_run_compares_every_configuration(
    folder: Path, rows: tuple[EvalRow, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    pipeline = FakePipeline({row.question: row.answer for row in rows})
    monkeypatch.setattr(Pipeline, "load", lambda _bundle, **_: pipeline)
    results = tmp_path / "results.json"
    arguments = ["evaluate", "run", str(folder), "--bundle", "b", "--results", str(results), "--thresholds", "0.9"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert evaluate.main() == 0
    shown = capsys.readouterr().out
    report: dict[str, Any] = json.loads(results.read_text())
    names = [each["name"] for each in report["configurations"]]
    assert len(names) == 8
    assert all(f"### {name}\n" in shown for name in names)
    kept = [each["options"]["keep"] for each in report["configurations"] if "keep" in each["options"]]
    assert kept == [math.ceil(64 * 112 / 448) / 64] * 2  # the fake keeps 112 of 448 tokens whatever it is asked
    assert report["data"]["seed"] == SEED
    assert report["cpu"]
    # the bundle's default is no merging, so that configuration is not asked again
    assert len(pipeline.calls) == 7 * len(rows)
    assert evaluate.main() == 0
    assert len(pipeline.calls) == 7 * len(rows)


def test_larger_pages_are_drawn_when_asked_for(tmp_path: Path, folder: Path) -> None:
    made = held_out.make(tmp_path, pages=2, seed=SEED, sides_px=(1500, 1792))
    assert made.sides_px == (1500, 1792)
    for path in sorted((tmp_path / "pages").glob("*.png")):
        with Image.open(path) as page:
            assert all(1500 <= side <= 1792 for side in page.size)
    usual = json.loads((folder / "about.json").read_text())
    assert usual["sides_px"] == [448, 1344]


@pytest.mark.parametrize("sides", [(100, 500), (900, 899)])
def test_pages_that_cannot_be_drawn_are_refused(tmp_path: Path, sides: tuple[int, int]) -> None:
    with pytest.raises(BadInput, match="cannot be drawn"):
        held_out.make(tmp_path, pages=1, seed=SEED, sides_px=sides)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(448, 1344), (1344, 500), (1792, 1345)])
def test_a_texture_covers_pages_of_any_size_and_leaves_small_ones_as_they_were(size: tuple[int, int]) -> None:
    width, height = size
    for seed in range(12):
        ground, _ = pages.background(np.random.default_rng(seed), width, height)
        assert ground.shape == (height, width, 3)
        if max(size) <= pages.MAX_PAGE_PX:
            rng = np.random.default_rng(seed)
            mood = rng.random()  # the draws that stand before the texture's, one by one
            base = rng.integers(205, 256) if mood < 0.72 else rng.integers(25, 65) if mood < 0.86 else None
            shade = rng.integers(165, 250, 3) if base is None else base + rng.integers(-12, 13, 3)
            amplitude = float(rng.choice([0.0, 0.03, 0.06, 0.1, 0.14])) * (0.6 if mood >= 0.72 else 1.0)
            expected = np.empty((height, width, 3), np.int16)
            expected[:] = np.clip(shade, 0, 255)
            if amplitude:
                texture = pages._texture(int(rng.integers(24)))
                top, left = int(rng.integers(1345 - height)), int(rng.integers(1345 - width))
                expected += (texture[top : top + height, left : left + width] * amplitude).astype(np.int16)[..., None]
            assert np.array_equal(ground, np.clip(expected, 0, 255))
