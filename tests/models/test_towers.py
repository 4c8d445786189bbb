"""Every tower, decoder and default against transformers' configuration classes and published sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from tests.models.census import TEXT
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput
from vlm_edge.models.decoders import DECODERS, PLAIN_DECODERS, text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import TOWERS, vision_spec


def published_config(kind: str) -> object:
    return AutoConfig.for_model(kind)


def as_plain(value: object) -> object:
    return tuple(as_plain(item) for item in value) if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("kind", TOWERS)
def test_defaults_of_towers_are_transformers_own(kind: str) -> None:
    theirs = published_config(kind)
    for name, value in TOWERS[kind].defaults.items():
        if hasattr(theirs, name):
            expected = as_plain(getattr(theirs, name))
            assert value == (
                expected[0] if name in ("image_size", "patch_size") and isinstance(expected, tuple) else expected
            )


@pytest.mark.parametrize("kind", DECODERS)
def test_defaults_of_decoders_are_transformers_own(kind: str) -> None:
    theirs = published_config(kind)
    derived = {"num_key_value_heads", "head_dim", "sliding_window"}  # null in the file, filled in by the class
    for name, value in DECODERS[kind].defaults.items():
        if hasattr(theirs, name) and not (name in derived and (value is None or not getattr(theirs, name))):
            assert as_plain(getattr(theirs, name)) == value, name


@pytest.mark.parametrize("kind", PLAIN_DECODERS)
@pytest.mark.parametrize(
    "changes", [{}, TEXT, TEXT | {"head_dim": 20, "attention_bias": True}], ids=["default", "odd", "head"]
)
def test_decoders_hold_what_transformers_builds(kind: str, changes: dict[str, int]) -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model(kind, **changes))
    spec = text_spec(Fields(changes), kind, tied=False)
    linear = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    embedding = model.embed_tokens.weight.numel()
    assert (spec.linear_parameters, spec.embedding_parameters) == (linear, embedding)
    assert spec.other_parameters == sum(p.numel() for p in model.parameters()) - linear - embedding
    assert spec.lm_head_parameters == embedding
    assert spec.qk_norm == any("q_norm" in name for name, _ in model.named_parameters())


def awq_bytes(spec: TextSpec, group: int = 128) -> float:
    """Packed weights and, for each group, a 4-bit zero point and a 16-bit scale; everything else at 16 bits."""
    rest = spec.embedding_parameters + spec.lm_head_parameters + spec.other_parameters
    return spec.linear_parameters * (0.5 + 0.5 / group + 2 / group) + 2 * rest


@pytest.mark.parametrize(
    ("kind", "sizes", "tied", "gigabytes"),
    [
        ("llama", {}, False, 3.89),
        (
            "llama",
            {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
            False,
            7.25,
        ),
        (
            "qwen2",
            {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
             "num_key_value_heads": 4, "vocab_size": 152064},
            False,
            5.57,
        ),
        (
            "qwen2",
            {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
             "num_key_value_heads": 2, "vocab_size": 151936},
            True,
            2.06,
        ),
        ("llama", {"intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 92544}, False, 5.14),
        ("qwen3", {"intermediate_size": 12288, "num_hidden_layers": 36, "num_key_value_heads": 8}, False, 6.10),
    ],
    ids=["Vicuna-7B", "Vicuna-13B", "Qwen2.5-7B", "Qwen2.5-3B", "InternLM2.5-7B", "Qwen3-8B"],
)  # fmt: skip
def test_published_sizes_of_awq_checkpoints(kind: str, sizes: dict[str, int], tied: bool, gigabytes: float) -> None:
    spec = text_spec(Fields(sizes), kind, tied=tied)
    assert awq_bytes(spec) / 1e9 == pytest.approx(gigabytes, abs=0.006)
    assert spec.parameters == text_spec(Fields(sizes), kind, tied=False).parameters - tied * spec.embedding_parameters


def test_siglip_so400m() -> None:
    sizes = {
        "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
        "image_size": 384, "patch_size": 14,
    }  # fmt: skip
    spec = vision_spec(Fields(sizes), "siglip_vision_model", final_norm=True)
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("siglip_vision_model", vision_use_head=False, **sizes))
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    assert (spec.patches, spec.prefix_tokens) == (729, 0)
    assert replace(spec, parameters=0) == replace(
        vision_spec(Fields(sizes), "siglip_vision_model", feature_layers=(27, 2)), parameters=0
    )


@pytest.mark.parametrize(("kind", "prefix"), [("dinov2", 1), ("dinov2_with_registers", 5), ("clip_vision_model", 1)])
def test_tokens_in_front_of_the_patches(kind: str, prefix: int) -> None:
    assert vision_spec(Fields({}), kind).prefix_tokens == prefix


def test_layer_types_win_over_a_rule() -> None:
    listed = ["full_attention"] * 4 + ["sliding_attention"]
    spec = text_spec(Fields(TEXT | {"layer_types": listed}), "gemma2", tied=True)
    assert (spec.sliding_window, spec.sliding_layers) == (4096, (4,))
    none = text_spec(Fields(TEXT | {"layer_types": listed, "sliding_window": None}), "gemma2", tied=True)
    assert (none.sliding_window, none.sliding_layers) == (0, ())


@pytest.mark.parametrize("listed", [["sliding_attention"], "sliding_attention", 5])
def test_layer_types_that_do_not_fit_the_layers(listed: object) -> None:
    with pytest.raises(BadInput, match="layer_types must be a list of 5 words"):
        text_spec(Fields(TEXT | {"layer_types": listed}), "gemma2", tied=True)
