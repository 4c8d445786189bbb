"""The campaign's judge sees what it is for, and its parts do on a few inputs what they do on thousands."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import pytest

from benchmarks.campaign import flips, forked, inputs, mutants, report
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.embedded import NANO

MIB = 1 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and asks /proc")


def misbehave(rng: random.Random) -> int:
    """One fault of each kind, by number; the rest is as it should be."""
    number = misbehave.count = getattr(misbehave, "count", -1) + 1
    if number == 1:
        raise KeyError("surprise")
    if number == 2:
        while True:
            rng.random()
    if number == 3:
        bytearray(b"x" * (80 * MIB))
    if number == 4:
        raise BadInput("nothing to be done about it", remedy="")
    if number == 5:
        raise BadInput("what it should be", remedy="do something")
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return 8 * MIB


def test_each_fault_is_told_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "SECONDS", 1.0)
    tally = forked.run(misbehave, range(8), "seed", 8 * MIB)
    assert [(fault.number, fault.fault) for fault in tally.faults] == [
        (1, "traceback"), (2, "hang"), (3, "memory"), (4, "message"), (6, "crash"),
    ]  # fmt: skip
    assert "KeyError: 'surprise'" in tally.faults[0].told
    assert tally.what == {"accepted": 3, "none": 3, "refused": 2}


def test_a_child_that_sleeps_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forked, "SILENCE_S", 0.3)
    tally = forked.run(lambda _: time.sleep(3600) or 0, range(1), "seed", MIB)
    assert [fault.fault for fault in tally.faults] == ["hang"]


@pytest.mark.parametrize("kind", inputs.KINDS)
def test_a_few_of_every_kind_of_input(kind: str) -> None:
    (tally,) = inputs.campaign({kind: 6}, seed=1).values()
    assert sum(tally.what.values()) == 6
    assert not tally.faults, tally.faults


def test_the_same_seed_makes_the_same_mutants() -> None:
    text = b'{"a": [1, 2], "b": {"c": "d"}}'
    made = [[mutants.text(text, random.Random(seed)) for seed in range(20)] for _ in range(2)]
    assert made[0] == made[1]
    assert len(set(made[0])) > 15
    assert abs(sum(inputs.SHARES.values()) - 1) < 1e-9


def test_a_changed_byte_is_found_and_put_back(tmp_path: Path) -> None:
    root = inputs.copy_of_nano(tmp_path)
    path = root / "llm/cpu/model.onnx.data"
    before, status = path.read_bytes(), path.stat()
    assert flips.flipped(path, random.Random(0)) == before
    assert sum(a != b for a, b in zip(before, path.read_bytes(), strict=True)) == 1
    assert path.stat().st_mtime_ns == status.st_mtime_ns
    assert flips.verify_finds(root)
    assert flips.run_refuses(root, tmp_path / "cache")
    path.write_bytes(before)
    assert not flips.verify_finds(root)
    assert {p.name for p in root.iterdir()} == {p.name for p in NANO.iterdir() if p.suffix != ".py"} - {"__pycache__"}


def test_a_section_of_the_report_replaces_itself_alone(tmp_path: Path) -> None:
    out = tmp_path / "campaign.md"
    for name, value in (("One", 1), ("Two", 2), ("One", 3)):
        report.write(name, ("what", "count"), [("x", value)], about="About it.", out=out)
    text = out.read_text()
    assert text.count("## One\n") == text.count("## Two\n") == 1
    assert "| x | 3 |" in text
    assert "| x | 2 |" in text
    assert "| x | 1 |" not in text
