"""The table of scale pairs against the classes that it describes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.quant import text_models
from vlm_edge.errors import BadInput
from vlm_edge.models.decoders import DECODERS
from vlm_edge.quant.folding import fold
from vlm_edge.quant.mapping import ARCHITECTURES, architecture_of, linear_layers, resolve

VL = {"qwen2_vl_text": "Qwen2VL", "qwen2_5_vl_text": "Qwen2_5_VL"}
IDS = text_models.tokens(2, 24)


def model_of(kind: str, **sizes: Any) -> Any:
    return text_models.qwen_vl_text(VL[kind]) if kind in VL else text_models.text_model(kind, **sizes)


def test_every_text_model_that_can_be_exported_is_in_the_table() -> None:
    assert ARCHITECTURES.keys() == DECODERS.keys() - {"mllama_text_model"}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_folding_keeps_the_function(kind: str) -> None:
    model = model_of(kind)
    layer, hidden, named = text_models.first_layer(model, IDS)
    before = text_models.output(layer, hidden, named)
    pairs = resolve(architecture_of(model.config.model_type), layer, model.config)
    assert [pair.fold == "none" for pair in pairs] == [False] * 4
    generator = torch.Generator().manual_seed(1)
    for pair in pairs:
        width = layer.get_submodule(pair.linears[0]).weight.shape[1]
        weight = layer.get_submodule(pair.linears[0]).weight.clone()
        scales = torch.exp(torch.randn(width, generator=generator))
        in_effect = fold(pair, layer, scales, stored=None)
        torch.testing.assert_close(in_effect, scales, rtol=1e-4, atol=0)
        assert not torch.equal(weight, layer.get_submodule(pair.linears[0]).weight)
    torch.testing.assert_close(text_models.output(layer, hidden, named), before, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_folding_keeps_the_function_with_norms_stored_in_half_precision(kind: str) -> None:
    model = model_of(kind)
    layer, hidden, named = text_models.first_layer(model, IDS)
    before = text_models.output(layer, hidden, named)
    pairs = resolve(architecture_of(kind), layer, model.config)
    for pair in pairs[::2]:
        fold(pair, layer, torch.linspace(0.1, 7, 64))
        norm = layer.get_submodule(pair.source).weight
        assert torch.equal(norm, norm.half().float())
    torch.testing.assert_close(text_models.output(layer, hidden, named), before, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["llama", "phi3", "qwen3"])
def test_values_do_not_fold_where_several_query_heads_share_them(kind: str) -> None:
    model = model_of(kind, num_key_value_heads=2)
    layer, _, _ = text_models.first_layer(model, IDS)
    pairs = resolve(architecture_of(kind), layer, model.config)
    assert [pair.fold == "none" for pair in pairs] == [False, True, False, False]
    assert pairs[1].linears == ("self_attn.o_proj",)


def test_a_channel_that_a_norm_silences_stays_silent() -> None:
    model = model_of("llama")
    layer, hidden, named = text_models.first_layer(model, IDS)
    layer.input_layernorm.weight.data[5] = 0
    before = text_models.output(layer, hidden, named)
    pair = resolve(architecture_of("llama"), layer, model.config)[0]
    assert fold(pair, layer, torch.full((64,), 3.0)).isfinite().all()
    torch.testing.assert_close(text_models.output(layer, hidden, named), before, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_linear_layer_is_named_once(kind: str) -> None:
    layer, _, _ = text_models.first_layer(model_of(kind), IDS)
    named = [name for pair in architecture_of(kind).pairs for name in pair.linears]
    assert sorted(named) == sorted(linear_layers(layer))


def test_an_unknown_architecture_says_what_it_needs() -> None:
    with pytest.raises(BadInput, match="'gemma3' cannot be quantized") as refused:
        architecture_of("gemma3")
    assert "nearest known one is 'gemma" in refused.value.remedy
    assert "mapping.py" in refused.value.remedy


def test_a_layer_with_other_linear_layers_is_refused() -> None:
    model = model_of("llama")
    model.model.layers[0].mlp.extra = torch.nn.Linear(4, 4)
    with pytest.raises(BadInput, match=r"mlp\.extra"):
        resolve(architecture_of("llama"), model.model.layers[0], model.config)
