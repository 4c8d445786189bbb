"""Text models: what each architecture's config leaves out, what its layers hold, and how many parameters that makes.

Defaults are those of transformers' configuration classes; older files give only what differs from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vlm_edge.core.specs import TextSpec
from vlm_edge.models.fields import Fields

Window = tuple[int, tuple[int, ...]]
"""Tokens that a layer looks back, and the layers that do so; (0, ()) where every layer sees everything."""


def _no_window(config: Fields, layers: int) -> Window:  # noqa: ARG001
    return 0, ()


def _every_layer(config: Fields, layers: int) -> Window:
    window = config.optional("sliding_window")
    return (window, tuple(range(layers))) if window else (0, ())


def _upper_layers(config: Fields, layers: int) -> Window:
    """Qwen: only if `use_sliding_window`; the layers from `max_window_layers` on, unless they are listed."""
    if not config.flag("use_sliding_window"):
        return 0, ()
    first = config.integer("max_window_layers", minimum=0)
    return _listed(config, layers, tuple(range(min(first, layers), layers)))


def _every_second_layer(config: Fields, layers: int) -> Window:
    """Gemma 2: layers 0, 2, 4 ..., unless they are listed."""
    return _listed(config, layers, tuple(range(0, layers, 2)))


def _listed(config: Fields, layers: int, otherwise: tuple[int, ...]) -> Window:
    window = config.optional("sliding_window")
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list | tuple) or len(kinds) != layers:
            raise config.error("layer_types", f"must be a list of {layers} words")
        otherwise = tuple(index for index, kind in enumerate(kinds) if kind == "sliding_attention")
    return (window, otherwise) if window and otherwise else (0, ())


@dataclass(frozen=True)
class Decoder:
    """What an architecture fixes. A flag may be the name of the field in the config that decides.

    norms: RMSNorms of the hidden size in a layer.  own_head_dim: the config may set it apart from hidden / heads.
    mrope: rotary positions have three parts.  spare_rows: rows of the embedding beyond the vocabulary.
    cross_attention: some layers attend to the image; those have q and k norms and two gates.
    """

    defaults: Mapping[str, Any]
    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    qk_norm: bool = False
    norms: int = 2
    own_head_dim: bool = True
    window: Callable[[Fields, int], Window] = _no_window
    mrope: bool = False
    spare_rows: int = 0
    cross_attention: bool = False


_LLAMA_7B = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "max_position_embeddings": 2048, "head_dim": None,
}  # fmt: skip
_QWEN = _LLAMA_7B | {
    "vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768,
    "use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
}  # fmt: skip
_QWEN_VL = Decoder(
    defaults=_QWEN | {
        "vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_window_layers": 80,
    },
    qkv_bias=True, own_head_dim=False, window=_upper_layers, mrope=True,
)  # fmt: skip

DECODERS: Mapping[str, Decoder] = {
    "llama": Decoder(
        defaults=_LLAMA_7B | {"attention_bias": False, "mlp_bias": False},
        qkv_bias="attention_bias", output_bias="attention_bias", mlp_bias="mlp_bias",
    ),
    "mistral": Decoder(
        defaults=_LLAMA_7B | {
            "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
            "sliding_window": 4096,
        },
        window=_every_layer,
    ),
    "qwen2": Decoder(defaults=_QWEN, qkv_bias=True, window=_upper_layers),
    "qwen3": Decoder(
        defaults=_QWEN | {"head_dim": 128, "attention_bias": False},
        qkv_bias="attention_bias", output_bias="attention_bias", qk_norm=True, window=_upper_layers,
    ),
    "qwen2_vl_text": _QWEN_VL,
    "qwen2_5_vl_text": _QWEN_VL,
    "gemma": Decoder(
        defaults=_LLAMA_7B | {
            "vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
            "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
            "attention_bias": False,
        },
        qkv_bias="attention_bias", output_bias="attention_bias",
    ),
    "gemma2": Decoder(
        defaults=_LLAMA_7B | {
            "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
            "attention_bias": False, "sliding_window": 4096,
        },
        qkv_bias="attention_bias", output_bias="attention_bias", norms=4, window=_every_second_layer,
    ),
    "phi3": Decoder(
        defaults=_LLAMA_7B | {
            "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 4096,
            "sliding_window": None,
        },
        window=_every_layer,
    ),
    "mllama_text_model": Decoder(
        defaults=_LLAMA_7B | {
            "vocab_size": 128256, "intermediate_size": 14336, "num_hidden_layers": 40, "num_key_value_heads": 8,
            "max_position_embeddings": 131072, "cross_attention_layers": (3, 8, 13, 18, 23, 28, 33, 38),
        },
        own_head_dim=False, spare_rows=8, cross_attention=True,
    ),
}  # fmt: skip

PLAIN_DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")
"""Those that stand alone, and that a family may put behind its projector by their model_type."""


def text_spec(config: Fields, kind: str, *, tied: bool, bidirectional_prefix: bool = False) -> TextSpec:
    """A decoder's sizes and parameters, those of linear layers apart from the rest.

    config: the text config.  kind: a key of DECODERS.  tied: whether lm_head is the embedding (a model's config has its
    own rules for that).  bidirectional_prefix: whether image and question attend in both directions.
    Raises BadInput for a field that is missing, of the wrong type or out of range, and for heads that do not divide.
    """
    decoder = DECODERS[kind]
    config = config.with_defaults(decoder.defaults)
    hidden, inner, layers = (
        config.integer("hidden_size"),
        config.integer("intermediate_size"),
        config.layers("num_hidden_layers"),
    )
    heads = config.integer("num_attention_heads")
    kv_heads = config.optional("num_key_value_heads") or heads
    if heads % kv_heads:
        raise config.error("num_key_value_heads", f"{kv_heads} does not divide num_attention_heads {heads}")
    head_dim = config.optional("head_dim") if decoder.own_head_dim else None
    if head_dim is None:
        if hidden % heads:
            raise config.error("num_attention_heads", f"{heads} does not divide hidden_size {hidden}")
        head_dim = hidden // heads
    vocab = config.integer("vocab_size")
    window, windowed = decoder.window(config, layers)
    crossing = _cross_layers(config, layers) if decoder.cross_attention else ()
    queries, keys = heads * head_dim, kv_heads * head_dim
    linear = 2 * hidden * (queries + keys) + 3 * hidden * inner
    biases = config.rule(decoder.qkv_bias) * (queries + 2 * keys) + config.rule(decoder.output_bias) * hidden
    biases += config.rule(decoder.mlp_bias) * (2 * inner + hidden)
    norms = decoder.norms * hidden + decoder.qk_norm * 2 * head_dim
    return TextSpec(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=inner,
        vocab=vocab,
        max_positions=config.integer("max_position_embeddings"),
        tied_embeddings=tied,
        architecture=kind,
        embedding_parameters=(vocab + decoder.spare_rows) * hidden,
        lm_head_parameters=0 if tied else vocab * hidden,
        linear_parameters=layers * linear,
        other_parameters=layers * (biases + norms) + len(crossing) * (2 * head_dim + 2) + hidden,
        sliding_window=window,
        sliding_layers=windowed,
        qk_norm=decoder.qk_norm,
        bidirectional_prefix=bidirectional_prefix,
        mrope_sections=_mrope_sections(config, head_dim) if decoder.mrope else (),
        cross_attention_layers=crossing,
    )


def _cross_layers(config: Fields, layers: int) -> tuple[int, ...]:
    return tuple(sorted(set(config.integers("cross_attention_layers", minimum=0, maximum=layers - 1))))


def _mrope_sections(config: Fields, head_dim: int) -> tuple[int, ...]:
    """From `rope_scaling` (older files) or `rope_parameters`; together they are half of head_dim."""
    name = "rope_scaling" if config.has("rope_scaling") else "rope_parameters"
    rope = config.part(name, optional=True).with_defaults({"mrope_section": (16, 24, 24)})
    sections = rope.integers("mrope_section", minimum=1, maximum=head_dim)
    if 2 * sum(sections) != head_dim:
        raise rope.error("mrope_section", f"{list(sections)} must add up to half of head_dim {head_dim}")
    return sections
