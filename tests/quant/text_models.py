"""Text models of every architecture in the table, in miniature, with random weights and a stream of tokens."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

from tests.tiny_vlms import randomized

SIZES = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 1e4}}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": 20}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "gemma": ("Gemma", {"head_dim": 32}),
    "gemma2": ("Gemma2", {"head_dim": 16, "sliding_window": 20, "query_pre_attn_scalar": 16}),
    "phi3": ("Phi3", {}),
}


def text_model(kind: str, **sizes: Any) -> Any:
    """A `...ForCausalLM`; grouped-query attention with num_key_value_heads=2."""
    name, own = CLASSES[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **own, **sizes})
    torch.manual_seed(0)
    return randomized(getattr(transformers, f"{name}ForCausalLM")(config))


def qwen_vl_text(name: str) -> Any:
    """The text model inside Qwen-VL, which has no class for causal language modelling of its own."""
    config = getattr(transformers, f"{name}Config")(text_config={**SIZES, **ROPE})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}TextModel")._from_config(config.text_config)
    return randomized(model)


def with_outliers(model: Any, factor: float = 20.0) -> Any:
    """Norm channels that are `factor` times the rest, as large models have them: there, scales have something to do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("input_layernorm.weight", "post_attention_layernorm.weight")):
                parameter[::11] *= factor
    return model


def tokens(count: int, length: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, SIZES["vocab_size"], (count, length), generator=generator)


def first_layer(model: Any, ids: torch.Tensor) -> tuple[nn.Module, torch.Tensor, dict[str, Any]]:
    """The first decoder layer with what the whole model calls it with."""
    decoder = getattr(model, "model", model)
    layer, seen = decoder.layers[0], {}

    def keep(_module: nn.Module, inputs: tuple[torch.Tensor, ...], named: dict[str, Any]) -> None:
        seen["hidden"], seen["named"] = inputs[0], named

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        decoder(input_ids=ids, use_cache=False)
    handle.remove()
    return layer, seen["hidden"], seen["named"]


def output(layer: nn.Module, hidden: torch.Tensor, named: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        found = layer(hidden, **named)
    return found[0] if isinstance(found, tuple) else found
