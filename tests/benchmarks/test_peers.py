"""What the comparison with peers makes of figures: aims, table, plot; and how a worker of it answers."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from benchmarks.peers import chain, compare
from benchmarks.peers.chain import Asked, Parts, serve, step_times
from benchmarks.peers.decoding import Facts, Timing
from benchmarks.peers.openvino.renamed import write_renamed
from benchmarks.peers.report import (
    LLAMA,
    OPENVINO,
    OURS,
    OURS_HALVED,
    TORCH,
    Figures,
    Found,
    aims,
    draw,
    figures,
    markdown,
    panels,
)

FACTS = Facts("v1", "int4", "int8", "fp16", "int8", vocabulary=50, read_bytes=900, position_bytes=2)
GOOD = Figures(
    vision_ms={1: 80.0, 5: 400.0}, prefill={64: 100.0, 640: 90.0}, decode={64: 50.0, 640: 40.0}, share={64: 0.9, 640: 0.85},
    ttft_ms=700.0, token_ms=20.0, prompt_tokens=600, peak_bytes=900 << 20, feature_error=0.015,
)  # fmt: skip
PEERS = {
    OPENVINO: replace(GOOD, vision_ms={1: 80.0, 5: 401.0}, prefill={64: 120.0, 640: 100.0}, peak_bytes=901 << 20),
    TORCH: replace(GOOD, ttft_ms=1000.0, peak_bytes=3000 << 20),
    LLAMA: replace(
        GOOD,
        vision_ms={},
        ttft_ms=None,
        token_ms=None,
        prompt_tokens=None,
        decode={64: 50.0, 640: 39.0},
        peak_bytes=1 << 20,
    ),
}


def test_aims_are_met_at_their_limits() -> None:
    judged = aims({OURS: GOOD, **PEERS})
    assert [aim.met for aim in judged] == [True] * 6
    assert judged[0].found == "1.00x for 1, 1.00x for 5 view(s), error 1.50%"
    assert judged[1].found == "1.20x at 64, 1.11x at 640"
    assert judged[5].found == "900 MiB; least 900 MiB, vlm-edge int8 vision"


def test_fewer_tokens_are_an_aim_of_their_own() -> None:
    halved = replace(
        GOOD, vision_ms={}, prefill={}, decode={}, share={}, ttft_ms=500.0, prompt_tokens=300, peak_bytes=950 << 20
    )
    whole = replace(GOOD, ttft_ms=800.0)
    judged = aims({OURS: whole, OURS_HALVED: halved, **PEERS})
    assert [(aim.found, aim.met) for aim in judged[4:6]] == [("0.80x", False), ("0.50x", True)]
    asked_only = Found(FACTS, "fp32", asked=[Asked(100.0, 10.0, 300, 5 << 20)])
    engines = {OURS: found(5 << 20), OURS_HALVED: asked_only}
    rows = markdown(
        engines, {name: figures(each, 20, 20_000) for name, each in engines.items()}, 2e10, "about", []
    ).splitlines()
    assert f"| {OURS_HALVED} | - | - | - | - | - | - | 300 | 100 | 10.0 | 5 | - | - |" in rows


@pytest.mark.parametrize(
    ("changed", "lost"),
    [
        ({"vision_ms": {1: 80.0, 5: 402.0}}, 0),
        ({"feature_error": 0.021}, 0),
        ({"feature_error": None}, 0),
        ({"prefill": {64: 99.0, 640: 90.0}}, 1),
        ({"decode": {64: 49.9, 640: 60.0}}, 2),
        ({"share": {64: 0.9, 640: 0.79}}, 3),
        ({"ttft_ms": 701.0}, 4),
        ({"peak_bytes": 902 << 20}, 5),
    ],
)
def test_one_worse_figure_loses_its_aim_alone(changed: dict[str, object], lost: int) -> None:
    judged = aims({OURS: replace(GOOD, **changed), **PEERS})  # type: ignore[arg-type]
    assert [number for number, aim in enumerate(judged) if not aim.met] == [lost]


def test_an_aim_whose_peer_was_left_out_is_not_known() -> None:
    assert [aim.met for aim in aims({OURS: GOOD, LLAMA: PEERS[LLAMA]})] == [None, None, True, True, None, None]
    assert aims(PEERS) == []


def found(peak: int, *, asks: bool = True) -> Found:
    made = Found(FACTS, "int8" if asks else "")
    made.timings = {p: [Timing(seconds, seconds, 7 << 20) for seconds in (4.0, 1.0, 2.0)] for p in (64, 640)}
    if asks:
        made.asked = [Asked(ms, ms / 10, 600, peak) for ms in (300.0, 100.0, 200.0)]
        made.vision_ms = {1: [30.0, 10.0, 20.0]}
        made.errors = {"features": 0.01, "logits": 0.2}
    return made


def test_figures_are_medians_and_the_chains_own_peak() -> None:
    whole = figures(found(5 << 20), 20, bandwidth=20_000)
    assert (whole.vision_ms, whole.ttft_ms, whole.token_ms, whole.feature_error) == ({1: 20.0}, 200.0, 20.0, 0.01)
    assert whole.prefill == {64: 32.0, 640: 320.0}
    assert whole.decode == {64: 10.0, 640: 10.0}
    # 900 bytes of weights and 74 positions of 2 bytes, ten times a second
    assert whole.share[64] == pytest.approx(1048 * 10 / 20_000)
    assert whole.peak_bytes == 5 << 20
    alone = figures(found(0, asks=False), 20, bandwidth=20_000)
    assert (alone.ttft_ms, alone.token_ms, alone.peak_bytes, alone.feature_error) == (None, None, 7 << 20, None)


def test_the_table_leaves_out_what_an_engine_does_not_do() -> None:
    engines = {OURS: found(5 << 20), LLAMA: found(0, asks=False)}
    of = {name: figures(each, 20, 20_000) for name, each in engines.items()}
    rows = markdown(engines, of, 2e10, "about", ["a note"]).splitlines()
    assert rows[0] == "about"
    assert f"| {LLAMA} | v1 | - | int4 | int8 | fp16 | int8 |" in rows
    (row,) = [row for row in rows if row.startswith(f"| {LLAMA} | - |")]
    assert row.endswith("| - | - | - | 7 | - | - |")
    assert "Memory was read at 20.0 GB/s." in rows
    assert "| prefill within 1.2x of OpenVINO's | OpenVINO GenAI was left out | not known |" in rows
    widths = {
        row.count("|")
        for row in rows
        if row.startswith((f"| {OURS} | 20", f"| {LLAMA} | - | 32", "| engine | vision ms"))
    }
    assert len(widths) == 1


def test_the_plot_holds_engines_that_have_the_figure(tmp_path: Path) -> None:
    of = {OURS: GOOD, **PEERS}
    shown = panels(of)
    assert [len(values) for values in shown.values()] == [3, 4, 4, 3, 3]
    assert shown["decode behind 640, tok/s"][LLAMA] == 39.0
    draw(of, "a title", tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_outputs_that_differ_by_more_than_rounding_are_told() -> None:
    engines = {OURS: found(1), LLAMA: found(1, asks=False), TORCH: found(1)}
    same = {"features": np.array([3.0, 4.0]), "logits": np.array([0.0, 2.0])}
    other = {"features": np.array([3.0, 4.04]), "logits": np.array([2.0, 0.0])}
    compare._compare_outputs(engines, {OURS: other, TORCH: same, LLAMA: {"logits": np.array([np.nan, 2.0])}})
    assert engines[TORCH].errors == {"features": 0.0, "logits": 0.0}
    assert engines[OURS].errors["features"] == pytest.approx(0.008)
    wrong = compare.disagreements(engines, exact=True)
    assert [one.split(" (")[0] for one in wrong] == [OURS, LLAMA]
    assert compare.disagreements(engines, exact=False) == [f"{LLAMA} (logits nan)"]
    engines[OURS].errors["features"] = 0.21
    assert compare.disagreements(engines, exact=False) == [f"{OURS} (features 2.1e-01)", f"{LLAMA} (logits nan)"]


def test_views_are_pixels_of_8_bits(tmp_path: Path) -> None:
    mean, std = [0.5, 0.25, 0.5], [0.25, 0.5, 0.125]
    (tmp_path / "config.json").write_text('{"vision_config": {"image_size": 28}}')
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": mean, "image_std": std}))
    (warm, image), file = compare._inputs(tmp_path, tmp_path, 3)
    pixels = np.load(file)
    assert (pixels.shape, pixels.dtype) == ((3, 3, 28, 28), np.float32)
    levels = 255 * (pixels * np.reshape(std, (3, 1, 1)) + np.reshape(mean, (3, 1, 1)))
    np.testing.assert_allclose(levels, np.rint(levels), atol=1e-3)
    assert -0.001 <= levels.min() < levels.max() <= 255.001
    assert np.ptp(pixels[0], (1, 2)).min() > 1
    assert warm.read_bytes() != image.read_bytes()


def test_an_environment_without_libmtmd_is_told_apart(tmp_path: Path) -> None:
    assert not compare._has_mtmd(Path(sys.executable))
    seeing = tmp_path / "python"
    seeing.write_text("#!/bin/sh\nexit 0\n")
    seeing.chmod(0o755)
    assert compare._has_mtmd(seeing)


class Counting:
    """Its likeliest token is the number of tokens read so far."""

    def __init__(self) -> None:
        self.read = 0

    def reset(self) -> None:
        self.read = 0

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        self.read += len(ids)
        return np.eye(50)[self.read % 50]


class Stub:
    def __init__(self) -> None:
        self.opened = 0

    def ask(self, image: str, new: int) -> Asked:
        return Asked(1.0, float(new), len(image), 4)

    def parts(self) -> Parts:
        self.opened += 1
        return Parts(FACTS, Counting(), "int8", lambda pixels: pixels.mean((2, 3))[:, None])


def test_a_worker_answers_each_order_and_opens_its_parts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels, features, logits = (str(tmp_path / name) for name in ("pixels.npy", "features.npy", "logits.npy"))
    np.save(pixels, np.arange(24.0).reshape(2, 3, 2, 2))
    orders = [
        {"order": "ask", "image": "abc", "new": 2}, {"order": "facts"}, {"order": "vision", "pixels": pixels, "views": 2},
        {"order": "features", "pixels": pixels, "out": features}, {"order": "logits", "prompt": 7, "out": logits},
        {"order": "run", "prompt": 5, "new": 2},
    ]  # fmt: skip
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{json.dumps(order)}\n" for order in orders)))
    stub = Stub()
    serve(stub)
    ready, *answers = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    asked, facts, vision, none, _, run = map(json.loads, answers)
    assert Asked(**asked) == Asked(1.0, 2.0, 3, 4)
    assert facts.pop("vision") == "int8"
    assert Facts(**facts) == FACTS
    assert vision > 0
    assert none is None
    np.testing.assert_array_equal(np.load(features), [[[1.5, 5.5, 9.5]]])
    assert np.load(logits).argmax() == 7
    assert Timing(**run).decode > 0
    assert stub.opened == 1


def test_times_of_a_stream_are_counted_from_its_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "peak_bytes", lambda: 9)
    assert step_times(10.0, [10.5, 10.7, 10.9], 600) == Asked(500.0, pytest.approx(200.0), 600, 9)
    assert step_times(10.0, [10.5], 600) == Asked(500.0, 0.0, 600, 9)


def test_a_tower_gets_its_older_names_and_keeps_its_values(tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    new.mkdir()
    kept = {"lm_head.weight": np.ones((2, 3), np.float16), "model.vision_tower.vision_model.a": np.zeros(3, np.float32)}
    tower = np.arange(5, dtype=np.float16)
    save_file(kept | {"model.vision_tower.b": tower}, new / "model.safetensors", {"format": "pt"})
    (new / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.vision_tower.b": "model.safetensors"}})
    )
    (new / "config.json").write_text("{}")
    write_renamed(new, old)
    found = load_file(old / "model.safetensors")
    assert found.keys() == {*kept, "model.vision_tower.vision_model.b"}
    np.testing.assert_array_equal(found["model.vision_tower.vision_model.b"], tower)
    np.testing.assert_array_equal(found["lm_head.weight"], kept["lm_head.weight"])
    assert list(json.loads((old / "model.safetensors.index.json").read_text())["weight_map"]) == [
        "model.vision_tower.vision_model.b"
    ]
    assert (old / "config.json").read_text() == "{}"
