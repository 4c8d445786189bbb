"""Measures against formulas written out, limits, stored references, and the search for the layer where a graph goes wrong."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vlm_edge.backends.onnx import references
from vlm_edge.backends.onnx.observe import sample
from vlm_edge.backends.onnx.parity import (
    LIMITS,
    Divergence,
    Limit,
    compare,
    cosine,
    limit_for,
    measure,
    relative_error,
    require,
)
from vlm_edge.core.load import to_plain
from vlm_edge.errors import BadInput, CheckFailed, DamagedBundle

RANDOM = np.random.default_rng(0)
GOOD = [RANDOM.normal(size=(3, 5, 8)).astype(np.float32) for _ in range(4)]


def test_a_largest_difference_is_a_limit_only_where_it_is_asked_for() -> None:
    wrong = [array.copy() for array in GOOD]
    wrong[1][0, 0, 0] += np.float32(1e-4)
    found = measure("vision", "fp32", wrong, GOOD)
    assert found.ok
    assert [row.metric for row in found.results()] == ["cosine", "relative_error"]
    for atol, ok in ((1.1e-4, True), (9e-5, False)):
        asked = measure("vision", "fp32", wrong, GOOD, limit=limit_for("fp32", atol))
        assert asked.ok == ok
        row = asked.results()[2]
        assert (row.metric, row.limit, row.ok) == ("max_error", atol, ok)
        assert row.value == pytest.approx(1e-4, rel=1e-2)
    with pytest.raises(CheckFailed, match="largest difference") as caught:
        require(asked)
    assert "--atol" in caught.value.remedy


def test_measures_are_the_worst_over_inputs() -> None:
    wrong = [array.copy() for array in GOOD]
    wrong[2][1, 3] += 0.5
    parity = measure("vision", "fp32", wrong, GOOD)
    a, b = wrong[2].ravel().astype(float), GOOD[2].ravel().astype(float)
    difference = np.sqrt(((a - b) ** 2).sum())
    assert parity.relative_error == pytest.approx(difference / np.sqrt((b**2).sum()), rel=1e-5)
    assert parity.cosine == pytest.approx((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), rel=1e-6)
    assert parity.max_error == pytest.approx(0.5, rel=1e-5)
    assert parity.finite
    assert not parity.ok


def test_equal_outputs_are_ok_at_every_dtype() -> None:
    for dtype in LIMITS:
        parity = measure("vision", dtype, GOOD, GOOD)
        assert parity.ok
        assert parity.max_error == 0
        require(parity)


def test_limits_grow_with_the_rounding() -> None:
    assert LIMITS["fp32"].relative_error < LIMITS["fp16"].relative_error < LIMITS["int8"].relative_error
    assert LIMITS["fp32"].cosine > LIMITS["fp16"].cosine > LIMITS["int8"].cosine


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_fail_whatever_the_limits(bad: float) -> None:
    wrong = [array.copy() for array in GOOD]
    wrong[0][0, 0, 0] = bad
    parity = measure("vision", "int8", wrong, GOOD, limit=Limit(-2, float("inf")))
    assert not parity.finite
    assert not parity.ok
    assert [result.ok for result in parity.results()] == [False, False]
    with pytest.raises(CheckFailed, match="not finite"):
        require(parity)
    assert not compare("llm", wrong[0], GOOD[0], 1.0).ok


def test_another_shape_is_no_match() -> None:
    assert relative_error(GOOD[0][:, :4], GOOD[0]) == float("inf")
    assert cosine(GOOD[0][:, :4], GOOD[0]) == -1
    assert not measure("vision", "int8", [GOOD[0][:1]], [GOOD[0]]).ok


def test_a_failure_names_dtype_component_values_and_layer() -> None:
    parity = measure("projector", "fp16", [array * np.float32(1.5) for array in GOOD], GOOD)
    with pytest.raises(CheckFailed) as caught:
        require(parity, Divergence("layers.3.mlp.fc1", 0.4))
    assert "the fp16 projector graph differs from torch" in caught.value.message
    assert "relative error 5.00e-01" in caught.value.message
    assert "begins at layers.3.mlp.fc1" in caught.value.message
    assert caught.value.exit_code == 1


def test_compare_has_its_own_limit() -> None:
    assert compare("x", GOOD[0], GOOD[0], 1e-4).ok
    assert not compare("x", GOOD[0] * np.float32(1.01), GOOD[0], 1e-4).ok


def test_records_can_be_written_as_json() -> None:
    parity = measure("vision", "fp32", GOOD, GOOD)
    assert json.loads(json.dumps(to_plain(parity)))["limit"] == dataclasses.asdict(LIMITS["fp32"])


def test_a_sample_spans_the_whole_layer() -> None:
    small, large = np.arange(10.0), np.arange(100_000.0)
    assert sample(small).values.tolist() == small.tolist()
    taken = sample(large)
    assert len(taken.values) <= 4096
    assert taken.values[-1] > 99_900


INPUTS = [{"pixel_values": array, "cu": np.array([0, number])} for number, array in enumerate(GOOD)]


def test_references_come_back_as_they_were_stored(tmp_path: Path) -> None:
    kept = references.keep_rows(INPUTS, GOOD)
    references.save(kept, tmp_path / "parity.npz")
    loaded = references.load(tmp_path / "parity.npz")
    assert loaded.fingerprints == kept.fingerprints
    for number, rows in enumerate(loaded.rows):
        assert rows.tolist() == [0, 5, 9, 14]
        np.testing.assert_array_equal(loaded.values[number], GOOD[number].reshape(15, 8)[rows])


def test_a_graph_is_judged_by_the_stored_rows() -> None:
    kept = references.keep_rows(INPUTS, GOOD)
    assert references.check(kept, "vision", "fp32", INPUTS, GOOD).ok
    wrong = [array.copy() for array in GOOD]
    wrong[3][2, 4] *= -1
    assert not references.check(kept, "vision", "int8", INPUTS, wrong).ok
    assert not references.check(kept, "vision", "int8", INPUTS, [*GOOD[:3], GOOD[3][:2]]).ok


def test_other_inputs_are_told_from_a_wrong_graph() -> None:
    kept = references.keep_rows(INPUTS, GOOD)
    other = [{**INPUTS[0], "cu": np.array([0, 9])}, *INPUTS[1:]]
    with pytest.raises(BadInput, match="not those"):
        references.check(kept, "vision", "fp32", other, GOOD)


@pytest.mark.parametrize("content", [b"", b"not an archive", b"PK\x03\x04 cut off"])
def test_damaged_references_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "parity.npz"
    path.write_bytes(content)
    with pytest.raises(DamagedBundle, match="holds no references"):
        references.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprints": np.array([], "U64")},
        {"rows_1": np.array([0.5, 1])},
        {"rows_1": np.array([-1, 0])},
        {"rows_1": np.zeros((2, 2), np.int64)},
        {"values_1": np.zeros((1, 8), np.float32)},
        {"values_1": np.zeros((4, 8), np.int32)},
        {"layers": np.array("path")},
        {"layers": np.array(["path"])},
    ],
    ids=["none", "fractions", "negative", "table", "fewer", "integers", "text", "no pairs"],
)
def test_references_that_say_nothing_usable(change: dict[str, np.ndarray], tmp_path: Path) -> None:
    path = tmp_path / "parity.npz"
    references.save(references.keep_rows(INPUTS, GOOD, {"layers.0": "value_7"}), path)
    assert references.load(path).layer_values == {"layers.0": "value_7"}
    with np.load(path) as stored:
        arrays = dict(stored) | change
    np.savez(path, **arrays)
    with pytest.raises(DamagedBundle, match="holds no references"):
        references.load(path)


def test_pickled_references_are_not_run(tmp_path: Path) -> None:
    np.savez(tmp_path / "parity.npz", fingerprints=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DamagedBundle):
        references.load(tmp_path / "parity.npz")
