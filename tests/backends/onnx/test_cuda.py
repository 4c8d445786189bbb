"""The CUDA paths; they need a device and onnxruntime-gpu."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.backends.onnx.conftest import Decoder
from vlm_edge.backends.onnx.decoder import build_decoder
from vlm_edge.backends.onnx.engine import OnnxEngine
from vlm_edge.backends.onnx.session import available_targets
from vlm_edge.errors import BadInput

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def cuda() -> None:
    if "cuda" not in available_targets():
        pytest.skip("ONNX Runtime here has no CUDA provider")


@pytest.fixture
def half(decoder: Decoder, tmp_path: Path) -> Decoder:
    """The same decoder in fp16, the only float that the attention on CUDA takes beside bf16."""
    build_decoder(decoder.graph.parents[1] / "torch", tmp_path / "onnx", precision="fp16", text=decoder.text)
    return replace(decoder, graph=tmp_path / "onnx/model.onnx")


def test_chunks_on_a_gpu_give_the_logits_of_transformers(half: Decoder) -> None:
    import torch

    embeds = np.random.default_rng(0).normal(size=(40, 128)).astype(np.float32)
    engine = OnnxEngine(half.graph, half.text, target="cuda", threads=1, context=96)
    engine.forward(embeds[:25])
    with torch.no_grad():
        expected = half.torch_model(inputs_embeds=torch.from_numpy(embeds)[None]).logits[0, -1].numpy()
    np.testing.assert_allclose(engine.forward(embeds[25:]), expected, rtol=2e-2, atol=2e-3)


def test_the_context_is_kept_on_a_gpu_too(half: Decoder) -> None:
    engine = OnnxEngine(half.graph, half.text, target="cuda", threads=1, context=8)
    with pytest.raises(BadInput):
        engine.forward(np.zeros((9, 128), np.float32))
