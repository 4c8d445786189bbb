"""Decoders from onnxruntime-genai's builder: a graph that reads the wrong layer is not published."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from vlm_edge.backends.onnx.decoder import build_decoder
from vlm_edge.errors import BadInput, CheckFailed, MissingDependency


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
        build_decoder(folder, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()


def test_what_the_builder_refuses_is_told_in_a_line(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime_genai")
    from tests.tiny_decoders import builder_in_process

    transformers.GPT2Config(architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path / "torch")
    with builder_in_process(), pytest.raises(BadInput, match=r"builder failed: .*not currently supported") as caught:
        build_decoder(tmp_path / "torch", tmp_path / "out", precision="fp32")
    assert "\n" not in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["torch"]
    assert sorted(path.name for path in (tmp_path / "torch").iterdir()) == ["config.json"]


def test_without_the_builder_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingDependency, match="onnxruntime-genai") as caught:
        build_decoder(tmp_path, tmp_path / "out", precision="int4")
    assert "vlm-edge[build]" in caught.value.remedy


def test_the_graph_does_not_tell_what_repository_the_builder_ran_in(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("onnxruntime_genai")
    onnx = pytest.importorskip("onnx")
    from tests.tiny_decoders import TEXT, builder_in_process

    config = transformers.LlamaConfig(**TEXT, tie_word_embeddings=False)
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "torch")
    with builder_in_process():
        build_decoder(tmp_path / "torch", tmp_path / "out", precision="fp32")
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False)
    assert graph.producer_version == metadata.version("onnxruntime-genai")
