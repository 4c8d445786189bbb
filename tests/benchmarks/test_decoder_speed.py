"""How decoders are timed, and what llama.cpp is given."""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from benchmarks import memory_read
from benchmarks.decoder_speed import PROMPTS, _print, speed
from benchmarks.engines import Engine
from benchmarks.peers.decoding import Facts, Timing, peak_bytes, prompt_ids, serve, time_once
from benchmarks.peers.llama_cpp.convert import interleaved

FACTS = Facts("v", "int4", "int8", "fp32", "int8", vocabulary=50, read_bytes=900, position_bytes=2)


class Counting:
    """Its likeliest token is the number of tokens read so far."""

    def __init__(self) -> None:
        self.read: list[list[int]] = [[9]]

    def reset(self) -> None:
        self.read = []

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        self.read.append(list(ids))
        return np.eye(50)[sum(map(len, self.read))]


def test_each_run_starts_anew_and_reads_what_it_made() -> None:
    decoder = Counting()
    timing = time_once(decoder, [4, 5, 6], new=3)
    assert decoder.read == [[4, 5, 6], [3], [4], [5]]
    assert timing.prefill > 0
    assert timing.decode > 0


def test_a_worker_says_what_it_is_and_answers_each_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "logits.npy"
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"run 5 2\nlogits 7 {file}\n"))
    decoder = Counting()
    serve(FACTS, decoder)
    described, timed, saved = capsys.readouterr().out.splitlines()
    assert Facts(**json.loads(described)) == FACTS
    assert Timing(**json.loads(timed)).decode > 0
    assert saved == str(file)
    assert np.load(file).argmax() == 7
    assert decoder.read == [prompt_ids(7, FACTS.vocabulary)]


def test_speeds_are_medians_and_a_share_of_the_bandwidth() -> None:
    timings = [Timing(2.0, decode, 0) for decode in (4.0, 1.0, 2.0)]
    found = speed(timings, FACTS, prompt=40, new=20, bandwidth=20_000)
    assert found.prefill == 20
    assert (found.low, found.decode, found.high) == (5, 10, 20)
    # 900 bytes of weights and 50 positions of 2 bytes, ten times a second
    assert found.share == pytest.approx(0.5)


def test_the_table_compares_each_engine_with_the_first(capsys: pytest.CaptureFixture[str]) -> None:
    timings = {
        (name, prompt): [Timing(1.0, seconds, 3 << 20)]
        for name, seconds in (("a", 2.0), ("b", 4.0))
        for prompt in PROMPTS
    }
    outputs = [np.array([1.0, 0.0]), np.array([3.0, 4.0])]
    _print({"a": FACTS, "b": FACTS}, outputs, timings, 1e9, argparse.Namespace(repeats=1, threads=2))
    rows = capsys.readouterr().out.splitlines()
    assert rows[3].endswith("| 0 MB | 2 B | 3 | 0.6000 |")
    assert rows[-1] == "| b | 640 | 640.0 | 8.0 | 8.0-8.0 | 0.00 | prefill 1.00, decode 2.00 |"


def test_prompts_are_the_same_and_hold_no_special_token() -> None:
    ids = prompt_ids(500, 40)
    assert ids == prompt_ids(500, 40)
    assert set(ids) == set(range(3, 40))


def test_peak_memory_counts_what_was_freed() -> None:
    before = peak_bytes()
    np.ones(30_000_000)
    assert peak_bytes() >= max(before, 240_000_000)


def test_memory_is_read_once_for_each_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("read\nread\n"))
    monkeypatch.setattr(memory_read, "BUFFER_BYTES", 1 << 16)
    memory_read.main(threads=2)
    ready, *readings = capsys.readouterr().out.splitlines()
    assert ready == "ready"
    assert len(readings) == 2
    assert min(map(float, readings)) > 0


def test_an_engine_answers_until_it_is_closed() -> None:
    program = "import sys\nprint('ready 1')\nsys.stdout.flush()\nfor line in sys.stdin: print(line.upper(), end='', flush=True)"
    engine = Engine("echo", [sys.executable, "-c", program], threads=1)
    assert engine.version == "ready 1"
    assert engine.ask("run") == "RUN"
    engine.close()


def test_an_engine_that_stops_says_why() -> None:
    with pytest.raises(SystemExit, match=r"broken stopped with 3\n.*no model here"):
        Engine("broken", [sys.executable, "-c", "import sys; print('no model here', file=sys.stderr); sys.exit(3)"], 1)


@pytest.mark.parametrize("heads", [1, 3])
def test_interleaved_rows_turn_the_same_under_the_other_rope(heads: int) -> None:
    """transformers turns the halves of a head against each other, llama.cpp neighbours: scores must agree."""
    rng = np.random.default_rng(0)
    d, width = 8, 5
    query, key = rng.normal(size=(2, heads * d, width))
    states = rng.normal(size=(2, width))
    angles = np.outer([7, 3], 100.0 ** (-np.arange(d // 2) / (d // 2)))

    def scores(halves: bool) -> np.ndarray:
        turned = []
        for weight, state, angle in zip((query, key), states, angles, strict=True):
            rows = (weight if halves else interleaved(weight, heads)) @ state
            pairs = rows.reshape(heads, 2, d // 2) if halves else rows.reshape(heads, d // 2, 2).swapaxes(1, 2)
            complex_pairs = (pairs[:, 0] + 1j * pairs[:, 1]) * np.exp(1j * angle)
            turned.append(complex_pairs)
        return (turned[0] * turned[1].conj()).real.sum(-1)

    np.testing.assert_allclose(scores(halves=False), scores(halves=True))
    assert not np.array_equal(interleaved(query, heads), query)
