"""One decoder layer: what is observed, what is searched, what is rounded."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.quant import text_models
from vlm_edge.quant.layer import Observer, quantize_awq, quantize_plain, run_plain
from vlm_edge.quant.mapping import ARCHITECTURES, architecture_of, linear_layers, resolve
from vlm_edge.quant.qparams import Scheme

SCHEME = Scheme(group_size=32)
COUNT, LENGTH = 6, 20


def observed(model: Any, search_tokens: int = 60) -> tuple[Any, Any, Any, list[Any]]:
    """(layer, pairs, observer, [(hidden, named) of each sequence])"""
    calls = []
    for row in text_models.tokens(COUNT, LENGTH):
        layer, hidden, named = text_models.first_layer(model, row[None])
        calls.append((hidden, named))
    pairs = resolve(architecture_of(model.config.model_type), layer, model.config)
    observer = Observer(layer, pairs, SCHEME, [LENGTH] * COUNT, search_tokens)
    for observer.sequence, (hidden, named) in enumerate(calls):
        text_models.output(layer, hidden, named)
    observer.close()
    return layer, pairs, observer, calls


def inputs_of(layer: Any, name: str, calls: list[Any]) -> torch.Tensor:
    rows: list[torch.Tensor] = []
    handle = layer.get_submodule(name).register_forward_hook(lambda _module, inputs, _output: rows.append(inputs[0][0]))
    for hidden, named in calls:
        text_models.output(layer, hidden, named)
    handle.remove()
    return torch.cat(rows)


def test_statistics_are_those_of_what_each_linear_layer_reads() -> None:
    model = text_models.text_model("llama")
    layer, pairs, observer, calls = observed(model)
    for pair in pairs:
        rows = inputs_of(layer, pair.linears[0], calls)
        every, seen = rows, observer.seen[pair.linears[0]]
        assert seen.tokens == COUNT * LENGTH
        torch.testing.assert_close(seen.total, every.abs().sum(0))
        second = torch.einsum("ti,tj->ij", every[:, 32:64], every[:, 32:64])
        torch.testing.assert_close(seen.gram[1], second, rtol=1e-4, atol=1e-4)
        if seen.rows:
            assert torch.equal(torch.cat(seen.rows), every[::2])


def test_attention_is_judged_on_whole_sequences_at_even_distances() -> None:
    _, _, observer, _ = observed(text_models.text_model("llama"))
    calls = observer.seen["self_attn.q_proj"].calls
    assert [states.shape[1] for states, _ in calls] == [LENGTH] * 4
    assert observer.whole == {0, 2, 3, 5}
    assert all("position_embeddings" in named for _, named in calls)


@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind in text_models.CLASSES])
def test_scales_and_clips_beat_plain_rounding_where_channels_stand_out(kind: str) -> None:
    model = text_models.with_outliers(text_models.text_model(kind))
    layer, pairs, observer, calls = observed(model)
    before = [text_models.output(layer, hidden, named) for hidden, named in calls]

    def error() -> float:
        after = (text_models.output(layer, hidden, named) for hidden, named in calls)
        return sum(float((a - b).square().sum()) for a, b in zip(after, before, strict=True))

    plain: list[float] = []
    with torch.no_grad():
        run_plain(layer, SCHEME, lambda: plain.append(error()))
        assert error() == 0
        found = quantize_awq(layer, architecture_of(kind), pairs, observer.seen, SCHEME)
    assert error() < plain[0] * 0.7
    assert all(report.loss <= report.plain_loss for report in found.pairs)
    assert len(found.pairs) == 4
    for name, linear in linear_layers(layer).items():
        assert torch.equal(found.quantized[name].dequantized(), linear.weight)
    unclipped = architecture_of(kind).unclipped
    assert set(found.clip_share) == set(linear_layers(layer)) - unclipped


def test_plain_rounding_is_each_weight_s_own() -> None:
    layer, _, _ = text_models.first_layer(text_models.text_model("qwen2"), text_models.tokens(1, 8))
    found = quantize_plain(layer, SCHEME)
    assert set(found) == set(linear_layers(layer))
    weight, code = linear_layers(layer)["mlp.up_proj"].weight, found["mlp.up_proj"]
    assert ((code.dequantized() - weight).abs() <= code.scale.float().repeat_interleave(32, 1) * 1.01).all()


def test_a_check_that_raises_stops_the_search() -> None:
    layer, pairs, observer, _ = observed(text_models.text_model("llama"))

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), torch.no_grad():
        quantize_awq(layer, architecture_of("llama"), pairs, observer.seen, SCHEME, stop)
