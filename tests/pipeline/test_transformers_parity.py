"""The shipped checkpoint answers alike in transformers and in the runtime, at fp32."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from vlm_edge.core.resources import resource_dir

CHECKPOINT = Path(__file__).parents[2] / "recipes/nano/checkpoint"


@pytest.fixture(scope="module")
def fp32_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime_genai")
    from recipes.nano.checkpoint import bundle

    out = tmp_path_factory.mktemp("fp32")
    bundle(CHECKPOINT, out, "fp32")
    return out


def test_greedy_answers_are_equal(fp32_bundle: Path) -> None:
    from recipes.nano.parity import cases, of_pages

    asked = itertools.islice(of_pages(resource_dir("calibration") / "pages"), 40)
    results = list(cases(CHECKPOINT, fp32_bundle, asked))
    assert len(results) >= 30
    assert [case for case in results if not case.equal] == []
