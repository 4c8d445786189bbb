"""A twin computes what its original computes, and loses more when it is rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from benchmarks.stress_twins import make_twin
from tests import quantizable
from tests.quant import text_models
from vlm_edge.quant.qparams import Scheme, rounded

IDS = text_models.tokens(2, 24)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma", "phi3"])
def test_the_function_stays_and_rounding_hurts(kind: str, tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model", kind, outliers=False, dtype=torch.float32)
    make_twin(tmp_path / "model", tmp_path / "twin", factor=32, channels=0.05)
    original, twin = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / name, dtype=torch.float32).eval()
        for name in ("model", "twin")
    )
    wanted = logits(original)
    torch.testing.assert_close(logits(twin), wanted, rtol=1e-4, atol=1e-4)
    errors = []
    for model in (original, twin):
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "_proj.weight" in name:
                    parameter.copy_(rounded(parameter, Scheme(group_size=32)))
        errors.append(float((logits(model) - wanted).square().mean()))
    assert errors[1] > 2 * errors[0]


def test_factors_that_would_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="power of two"):
        make_twin(tmp_path, tmp_path / "twin", factor=10, channels=0.05)
