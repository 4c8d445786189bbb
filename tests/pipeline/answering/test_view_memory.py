"""Asked in many ways in turn, an image is decoded, searched and encoded once; answers and told times are those of doing it anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm_edge import AskOptions, Pipeline
from vlm_edge.pipeline.answering import run as run_module
from vlm_edge.pipeline.answering.options import Look
from vlm_edge.pipeline.answering.view_memory import BATCHES, RememberingEncoder, ViewMemory
from vlm_edge.pipeline.sweeping.shared_vision import SharedVision
from vlm_edge.vision.tiling import Tile

PAGE = Path(__file__).parents[3] / "calibration/pages/receipt.png"
WAYS = [
    AskOptions(tiling=tiling, max_tiles=tiles, saliency=saliency, reduce=reduce, keep=0.5)
    for tiling, tiles, saliency in [
        ("auto", 6, None),
        ("auto", 3, None),
        ("auto", 3, "cnn"),
        ("auto", 2, "novelty"),
        ("grid", 4, None),
        ("none", None, None),
    ]
    for reduce in ("none", "tome", "threshold")
]


class Doubling:
    """An encoder that counts its calls."""

    inputs = ("pixel_values",)

    def __init__(self) -> None:
        self.calls = 0

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        self.calls += 1
        return 2 * pixels


def test_answers_are_those_of_a_pipeline_that_forgets() -> None:
    remembering, plain = SharedVision(Pipeline.load()), Pipeline.load()
    for options in WAYS:
        for question in ("what is the total?", "where is the circle?"):
            shared = remembering.ask(PAGE, question, options)
            plain.forget()
            alone = plain.ask(PAGE, question, options)
            assert (shared.text, shared.tokens, shared.members) == (alone.text, alone.tokens, alone.members)
            assert [tile.box for tile in shared.tiles] == [tile.box for tile in alone.tiles]
            assert shared.planned_peak_bytes == alone.planned_peak_bytes


def test_work_is_done_once_and_its_time_told_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = run_module.open_picture
    monkeypatch.setattr(run_module, "open_picture", lambda *a: decoded.append(a) or original(*a))
    shared = SharedVision(Pipeline.load())
    options = [AskOptions(reduce=reduce, keep=0.5) for reduce in ("none", "tome", "landmark", "downsample")]
    times = [shared.ask(PAGE, "what is the total?", each).timings_ms for each in options]
    assert len(decoded) == 1
    for told in times[1:]:
        assert told["vision"] >= 0.5 * times[0]["vision"] > 0
        assert told["saliency"] >= 0.5 * times[0]["saliency"] > 0
        assert told["total"] >= sum(told[stage] for stage in ("preprocess", "saliency", "vision", "prefill"))
    further = shared.ask(PAGE, "what is the tax?", options[-1]).timings_ms
    assert further["vision"] == further["saliency"] == 0


def test_an_encoder_gives_the_same_batch_again_and_no_other() -> None:
    inner, saved = Doubling(), {"vision": 0.0}
    encoder = RememberingEncoder(inner, saved)
    batch = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
    first = encoder.encode(batch)
    assert saved["vision"] == 0
    first += 1  # what a caller does to a result must not reach the next one
    assert np.array_equal(encoder.encode(batch.copy()), 2 * batch)
    assert inner.calls == 1
    assert saved["vision"] > 0
    assert np.array_equal(encoder.encode(batch[:1]), 2 * batch[:1])
    assert np.array_equal(encoder.encode(batch.reshape(4, 3, 2, 1)), 2 * batch.reshape(4, 3, 2, 1))
    assert inner.calls == 3
    for shift in range(BATCHES):
        encoder.encode(batch + shift + 1)
    encoder.encode(batch)
    assert inner.calls == 3 + BATCHES + 1


def test_tiles_are_remembered_by_image_and_by_what_chose_them() -> None:
    memory, look = ViewMemory(), Look("auto", 2, "tome", 0.5, 1.0, 0, saliency="detail")
    memory.keep_tiles("page", look, (Tile(0, 0, 9, 9, 1.0),), 5.0)
    other_reduction = Look("auto", 2, "none", 1.0, 1.0, 0, saliency="detail")
    found = memory.look("page", other_reduction)
    assert (found.tiles, found.reduce, found.max_tiles, found.whole) == (((0, 0, 9, 9),), "none", 2, False)
    assert memory.saved_ms["saliency"] == 5.0
    for content, asked in (
        ("other page", look),
        ("page", Look("auto", 3, "tome", 0.5, 1.0, 0, saliency="detail")),
        ("page", Look("auto", 2, "tome", 0.5, 1.0, 0, saliency="cnn")),
    ):
        assert memory.look(content, asked) is asked
    grid = Look("grid", 2, "tome", 0.5, 1.0, 0)
    memory.keep_tiles("page", grid, (), 5.0)
    assert memory.look("page", grid) is grid


def test_a_huge_image_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_edge.pipeline.answering.view_memory.MOST_PIXEL_BYTES", 11)
    memory, decoded = ViewMemory(), []

    def decode(size: int) -> np.ndarray:
        decoded.append(size)
        return np.zeros((1, size, 3), np.uint8)

    for size in (3, 3, 4, 4):
        memory.pixels(f"image of {size}", lambda size=size: decode(size))
    assert decoded == [3, 4, 4]
