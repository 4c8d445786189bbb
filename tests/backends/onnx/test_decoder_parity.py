"""Stored references of a decoder, checked with an engine that is a matrix."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm_edge.backends.onnx import decoder_parity
from vlm_edge.backends.onnx.decoder_parity import DecoderReferences, compare, keep, load, save
from vlm_edge.backends.onnx.parity import Limit
from vlm_edge.errors import DamagedBundle

SEQUENCES, LENGTH, PROMPT, HIDDEN, VOCAB = 2, 9, 6, 5, 40
HEAD = np.random.default_rng(0).normal(size=(HIDDEN, VOCAB)).astype(np.float32)


class Sum:
    """Logits of the sum of all rows so far, each weighed by its positions."""

    def __init__(self, *, off: float = 0.0, after: int = 0) -> None:
        self._rows: list[np.ndarray] = []
        self._off, self._after = off, after
        self.calls: list[int] = []

    def forward(self, embeds: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        self.calls.append(len(embeds))
        self._rows += [*(embeds if positions is None else embeds * (1 + positions.sum(0))[:, None])]
        logits = np.sum(self._rows, axis=0) @ HEAD
        return (logits + (self._off if self.length > self._after else 0)).astype(np.float32)

    def rewind(self, length: int) -> None:
        del self._rows[length:]

    @property
    def length(self) -> int:
        return len(self._rows)


@pytest.fixture(params=[False, True], ids=["plain", "three-part"])
def references(request: pytest.FixtureRequest) -> DecoderReferences:
    random = np.random.default_rng(1)
    embeds = random.normal(size=(SEQUENCES, LENGTH, HIDDEN)).astype(np.float16).astype(np.float32)
    positions = random.integers(0, 9, (SEQUENCES, 3, LENGTH)) if request.param else None
    weighed = embeds if positions is None else embeds * (1 + positions.sum(1))[..., None]
    logits = (np.cumsum(weighed, axis=1)[:, PROMPT - 1 :] @ HEAD).astype(np.float32)
    return keep(embeds, PROMPT, logits, positions)


def test_prompt_and_steps_are_compared(references: DecoderReferences) -> None:
    engine = Sum()
    engine.forward(np.ones((3, HIDDEN), np.float32))  # something that was there before
    parity = compare(engine, references, "fp32")
    assert parity.ok
    assert parity.component == "llm"
    assert parity.relative_error < 1e-6
    assert engine.calls[1:] == [PROMPT, 1, 1, 1] * SEQUENCES


@pytest.mark.parametrize("after", [0, PROMPT, LENGTH - 1])
def test_an_error_in_any_row_is_seen(references: DecoderReferences, after: int) -> None:
    parity = compare(Sum(off=3.0, after=after), references, "fp32")
    assert not parity.ok
    assert parity.max_error == pytest.approx(3.0, abs=1e-3)
    assert not compare(Sum(off=float("nan"), after=after), references, "fp32").finite
    assert compare(Sum(off=3.0, after=after), references, "int4", limit=Limit(cosine=-1, relative_error=99)).ok


def test_they_survive_a_file(references: DecoderReferences, tmp_path: Path) -> None:
    save(references, tmp_path / "llm/references.npz")
    again = load(tmp_path / "llm/references.npz")
    for name in ("embeds", "columns", "logits", "positions"):
        np.testing.assert_array_equal(getattr(again, name), getattr(references, name))
    assert again.prompt == PROMPT
    assert compare(Sum(), again, "fp32").ok


def test_a_large_vocabulary_is_thinned_to_the_last_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_parity, "COLUMNS", 7)
    kept = keep(np.zeros((1, 2, 4), np.float32), 1, np.arange(100, dtype=np.float32).reshape(1, 2, 50))
    assert len(kept.columns) == 7
    assert {0, 49} < {*kept.columns.tolist()}
    np.testing.assert_array_equal(kept.logits[0, 1], kept.columns + 50)


def test_references_of_a_larger_vocabulary(references: DecoderReferences) -> None:
    with pytest.raises(DamagedBundle, match="another decoder"):
        compare(Sum(), replace(references, columns=references.columns + 1), "fp32")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": 0},
        {"prompt": LENGTH + 1},
        {"logits": np.zeros((1, 2, 3), np.float32)},
        {"positions": np.zeros((SEQUENCES, 2, LENGTH), np.int64)},
    ],
    ids=str,
)
def test_arrays_that_do_not_belong_together(change: dict, references: DecoderReferences, tmp_path: Path) -> None:
    save(replace(references, **change), tmp_path / "references.npz")
    with pytest.raises(DamagedBundle, match="holds no references"):
        load(tmp_path / "references.npz")


def test_files_that_are_no_references(references: DecoderReferences, tmp_path: Path) -> None:
    path = tmp_path / "references.npz"
    save(references, path)
    content = path.read_bytes()
    for damaged in (b"", b"PK\3\4", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DamagedBundle, match="holds no references"):
            load(path)
    np.savez(path, other=np.zeros(3))
    with pytest.raises(DamagedBundle, match="holds no references"):
        load(path)
