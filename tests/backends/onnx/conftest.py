"""A two-layer random Llama and what the builder makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core.specs import TextSpec


@dataclass(frozen=True)
class Decoder:
    """A torch decoder, its graph in fp32, and its sizes."""

    torch_model: Any
    graph: Path
    text: TextSpec


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime_genai")
    from tokenizers import Tokenizer, models

    from vlm_edge.backends.onnx.decoder import build_decoder

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("decoder")
    config = transformers.LlamaConfig(
        vocab_size=320, hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=False,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(folder / "torch")
    Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).save(str(folder / "torch/tokenizer.json"))
    (folder / "torch/tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    build_decoder(folder / "torch", folder / "onnx", precision="fp32")
    text = TextSpec(
        hidden=128, layers=2, heads=4, kv_heads=2, head_dim=32, intermediate=256, vocab=320, max_positions=256
    )
    return Decoder(model, folder / "onnx/model.onnx", text)
