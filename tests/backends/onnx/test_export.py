"""Exports are compared with torch, and a wrong one is not published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm_edge.backends.onnx import export
from vlm_edge.backends.onnx.runner import OnnxEncoder
from vlm_edge.errors import CheckFailed

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


class Tower(torch.nn.Module):
    """Patches of 4 px through a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = torch.nn.Conv2d(3, 8, 4, stride=4)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.patch(pixel_values).flatten(2).transpose(1, 2)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tower, Path]:
    torch.manual_seed(0)
    tower, out = Tower().eval(), tmp_path_factory.mktemp("tower")
    parity = export.export_encoder(tower, pixels(3), out)
    assert parity.ok
    assert parity.value < 1e-5
    return tower, out / "model.onnx"


def pixels(views: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(views, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("views", [1, 2, 7, 8, 9, 17])
def test_the_graph_takes_any_number_of_views(exported: tuple[Tower, Path], views: int) -> None:
    tower, graph = exported
    with torch.no_grad():
        expected = tower(torch.from_numpy(pixels(views, 1))).numpy()
    measured = OnnxEncoder(graph, target="cpu", threads=1).encode(pixels(views, 1))
    np.testing.assert_allclose(measured, expected, rtol=1e-4, atol=1e-5)


def test_values_that_are_not_finite_stop_the_run(exported: tuple[Tower, Path]) -> None:
    broken = pixels(2)
    broken[1, 0, 3, 3] = np.nan
    with pytest.raises(CheckFailed, match="not finite"):
        OnnxEncoder(exported[1], target="cpu", threads=1).encode(broken)


def test_a_graph_that_differs_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OnnxEncoder.encode
    monkeypatch.setattr(OnnxEncoder, "encode", lambda self, views: right(self, views) * np.float32(1.01))
    with pytest.raises(CheckFailed, match="differs from torch"):
        export.export_encoder(Tower().eval(), pixels(2), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_parity_of_values_that_are_not_finite_fails() -> None:
    good = np.ones((2, 3), np.float32)
    assert export.compare("x", good, good, 1e-4).ok
    bad = good.copy()
    bad[0, 0] = np.inf
    assert not export.compare("x", bad, good, 1e-4).ok


def test_a_head_that_reads_the_wrong_layer_is_noticed(tmp_path: Path) -> None:
    """With a vocabulary as large as the hidden size the builder mistakes an attention output for the lm_head."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime_genai")
    from tokenizers import Tokenizer, models

    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=128, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    folder = tmp_path / "torch"
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckFailed, match="lm_head"):
        export.build_decoder(folder, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()
