"""Vision towers: what each architecture's config leaves out, what its layers hold, and how many parameters that makes.

Defaults are those of transformers' configuration classes; older files give only what differs from them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlm_edge.core.specs import VisionSpec
from vlm_edge.models.fields import Fields

NOMINAL_PX = 448
"""Side of the view that stands for a tower of any resolution, whose config has no image size."""


def linear(inputs: int, outputs: int, *, bias: bool = True) -> int:
    """Parameters of a linear layer."""
    return inputs * outputs + bias * outputs


def layer_norm(width: int) -> int:
    """Parameters of a LayerNorm: weight and bias."""
    return 2 * width


def rms_norm(width: int) -> int:
    """Parameters of an RMSNorm: weight alone."""
    return width


def _mlp(config: Fields, width: int) -> int:  # noqa: ARG001
    return config.integer("intermediate_size")


def _mlp_by_ratio(config: Fields, width: int) -> int:
    return width * config.integer("mlp_ratio")


def _dinov2_mlp(config: Fields, width: int) -> int:
    """A gated MLP has two thirds of the size, rounded up to a multiple of 8, so that three matrices weigh like two."""
    full = _mlp_by_ratio(config, width)
    return (full * 2 // 3 + 7) // 8 * 8 if config.flag("use_swiglu_ffn") else full


def _no_more(config: Fields, width: int, patches: int) -> int:  # noqa: ARG001
    return 0


def _mllama_more(config: Fields, width: int, patches: int) -> int:
    """Gated embeddings by aspect ratio (id 0 is padding) and tile, and two gates in each global layer."""
    ratios = config.value("supported_aspect_ratios")
    if not isinstance(ratios, list | tuple):
        raise config.error("supported_aspect_ratios", "must be a list of pairs")
    per_tile = (len(ratios) + 1) * config.integer("max_num_tiles") * width
    return per_tile * (patches + 1) + 1 + 2 * (per_tile + 1) + 2 * config.layers("num_global_layers")


_NAMES = {
    "width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads", "channels": "num_channels"
}  # fmt: skip
_QWEN_NAMES = {"width": "hidden_size", "layers": "depth", "heads": "num_heads", "channels": "in_channels"}


@dataclass(frozen=True)
class Tower:
    """What an architecture fixes. A flag may be the name of the field in the config that decides.

    positions: a learned table.  pre_norm: a norm between embeddings and layers.  final_norm: a norm behind the layers.
    rms: norms have a weight and no bias.  norm_kind: the field that says so, where the config decides.
    more: parameters beyond that, from (config, width, patches).
    """

    defaults: Mapping[str, Any]
    names: Mapping[str, str] = field(default_factory=lambda: _NAMES)
    mlp: Callable[[Fields, int], int] = _mlp
    gated_mlp: bool | str = False
    patch_bias: bool = True
    class_token: bool = False
    registers: bool = False
    positions: bool | str = True
    pre_norm: bool = False
    qkv_bias: bool | str = True
    output_bias: bool = True
    qk_norm: bool | str = False
    rms: bool = False
    norm_kind: str = ""
    layer_scale: bool = False
    global_layers: bool = False
    any_size: bool = False
    windows: bool = False
    more: Callable[[Fields, int, int], int] = _no_more


_SIZES = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
_IDEFICS3 = Tower(defaults=_SIZES | {"hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32})
_DINOV2_DEFAULTS = _SIZES | {"mlp_ratio": 4, "qkv_bias": True, "use_swiglu_ffn": False}
_QWEN_DEFAULTS = {
    "depth": 32, "hidden_size": 3584, "num_heads": 16, "in_channels": 3, "patch_size": 14, "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}  # fmt: skip

TOWERS: Mapping[str, Tower] = {
    "clip_vision_model": Tower(
        defaults=_SIZES | {"patch_size": 32}, patch_bias=False, class_token=True, pre_norm=True
    ),
    "siglip_vision_model": Tower(defaults=_SIZES),
    "dinov2": Tower(
        defaults=_DINOV2_DEFAULTS | {"patch_size": 14}, mlp=_dinov2_mlp, gated_mlp="use_swiglu_ffn", class_token=True,
        qkv_bias="qkv_bias", layer_scale=True,
    ),
    "dinov2_with_registers": Tower(
        defaults=_DINOV2_DEFAULTS | {"num_register_tokens": 4}, mlp=_dinov2_mlp, gated_mlp="use_swiglu_ffn",
        class_token=True, registers=True, qkv_bias="qkv_bias", layer_scale=True,
    ),
    "internvl_vision": Tower(
        defaults=_SIZES | {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 448, "patch_size": 14, "attention_bias": False, "use_qk_norm": False,
            "norm_type": "layer_norm", "use_absolute_position_embeddings": True, "use_mean_pooling": True,
        },
        class_token=True, positions="use_absolute_position_embeddings", qkv_bias="attention_bias",
        qk_norm="use_qk_norm", norm_kind="norm_type", layer_scale=True,
    ),
    "idefics2_vision": Tower(defaults=_SIZES | {"patch_size": 32}),
    "idefics3_vision": _IDEFICS3,
    "smolvlm_vision": _IDEFICS3,
    "qwen2_vl_vision": Tower(
        defaults=_QWEN_DEFAULTS | {"embed_dim": 1280, "mlp_ratio": 4}, names=_QWEN_NAMES | {"width": "embed_dim"},
        mlp=_mlp_by_ratio, patch_bias=False, positions=False, any_size=True,
    ),
    "qwen2_5_vl_vision": Tower(
        defaults=_QWEN_DEFAULTS | {
            "intermediate_size": 3420, "window_size": 112, "out_hidden_size": 3584,
            "fullatt_block_indexes": (7, 15, 23, 31),
        },
        names=_QWEN_NAMES, gated_mlp=True, patch_bias=False, positions=False, rms=True, any_size=True, windows=True,
    ),
    "mllama_vision_model": Tower(
        defaults={
            "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "attention_heads": 16,
            "num_channels": 3, "image_size": 448, "patch_size": 14, "num_global_layers": 8,
            "vision_output_dim": 7680, "max_num_tiles": 4,
            "intermediate_layers_indices": (3, 7, 15, 23, 30),
            "supported_aspect_ratios": ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)),
        },
        names=_NAMES | {"heads": "attention_heads"}, patch_bias=False, class_token=True, pre_norm=True, qkv_bias=False,
        output_bias=False, global_layers=True, more=_mllama_more,
    ),
}  # fmt: skip


def vision_spec(
    config: Fields, kind: str, *, feature_layers: Sequence[int] = (-1,), final_norm: bool = False
) -> VisionSpec:
    """A tower's sizes and the parameters that run.

    config: the vision config.  kind: a key of TOWERS.  feature_layers: hidden states that the projector reads, as
    transformers counts them: 0 the embeddings, -1 or the number of layers the last layer's output.
    final_norm: whether the projector reads what the norm behind the last layer makes.
    Raises BadInput for a field that is missing, of the wrong type or out of range, and for heads that do not divide.
    """
    tower = TOWERS[kind]
    config = config.with_defaults(tower.defaults)
    names = tower.names
    width, heads = config.integer(names["width"]), config.integer(names["heads"])
    if width % heads:
        raise config.error(names["heads"], f"{heads} does not divide {names['width']} {width}")
    patch_px = config.side("patch_size")
    image_px = NOMINAL_PX if tower.any_size else config.side("image_size")
    patches = patch_grid(config, image_px, patch_px=patch_px) ** 2
    registers = config.integer("num_register_tokens", minimum=0) if tower.registers else 0
    frames = config.integer("temporal_patch_size") if tower.any_size else 1
    total = config.layers(names["layers"])
    layers = max(used_layers(total, layer) for layer in feature_layers)
    layers += config.layers("num_global_layers") if tower.global_layers else 0
    norm = (rms_norm if _is_rms(tower, config) else layer_norm)(width)
    table = patches + tower.class_token if config.rule(tower.positions) else 0
    stem = linear(config.integer(names["channels"]) * frames * patch_px**2, width, bias=tower.patch_bias)
    stem += (tower.class_token + registers + table) * width + tower.pre_norm * norm
    mlp = tower.mlp(config, width)
    window_px, full = _windows(config, layers) if tower.windows else (0, ())
    return VisionSpec(
        width=width,
        layers=layers,
        heads=heads,
        mlp=mlp,
        image_px=image_px,
        patch_px=patch_px,
        gated_mlp=config.rule(tower.gated_mlp),
        prefix_tokens=tower.class_token + registers,
        temporal_patch=frames,
        window_px=window_px,
        full_attention_layers=full,
        parameters=stem
        + layers * _layer(tower, config, width, mlp, norm)
        + final_norm * norm
        + tower.more(config, width, patches),
    )


def _layer(tower: Tower, config: Fields, width: int, mlp: int, norm: int) -> int:
    attention = 3 * linear(width, width, bias=config.rule(tower.qkv_bias))
    attention += linear(width, width, bias=tower.output_bias) + 2 * width * config.rule(tower.qk_norm)
    inner = (1 + config.rule(tower.gated_mlp)) * linear(width, mlp) + linear(mlp, width)
    return attention + inner + 2 * norm + 2 * width * tower.layer_scale


def _is_rms(tower: Tower, config: Fields) -> bool:
    if not tower.norm_kind:
        return tower.rms
    word = config.value(tower.norm_kind)
    if word not in ("layer_norm", "rms_norm"):
        raise config.error(tower.norm_kind, f"must be layer_norm or rms_norm, not {word!r}")
    return bool(word == "rms_norm")


def _windows(config: Fields, layers: int) -> tuple[int, tuple[int, ...]]:
    cell_px = config.side("patch_size") * config.integer("spatial_merge_size")
    window_px = config.integer("window_size", minimum=cell_px)
    named = config.integers("fullatt_block_indexes", minimum=0, maximum=2**31 - 1)
    return window_px // cell_px * cell_px, tuple(index for index in range(layers) if index in named)


def patch_grid(vision: Fields, view_px: int, *, patch_px: int) -> int:
    """Patches along a view's side; what is left of a patch at the edge is not seen.  Raises BadInput if none fits."""
    if patch_px > view_px:
        raise vision.error("patch_size", f"of {patch_px} px is larger than a view of {view_px} px")
    return view_px // patch_px


def shuffled_grid(config: Fields, side: int, factor: int, *, name: str) -> tuple[int, int]:
    """The token grid after factor x factor patches became one; raises BadInput where that does not divide."""
    if side % factor:
        raise config.error(name, f"makes one token of {factor} x {factor} patches, but a view has {side} x {side}")
    return side // factor, side // factor


def used_layers(layers: int, feature_layer: int) -> int:
    """Layers that run for a hidden state: -1 is the last one's output, -2 the one before it, 0 the embeddings."""
    return layers + 1 + feature_layer if feature_layer < 0 else feature_layer


def feature_layers(config: Fields, layers: int) -> tuple[int, ...]:
    """`vision_feature_layer`, a number or a list of numbers, checked against a tower of `layers` layers."""
    limits = {"minimum": -(layers + 1), "maximum": layers}
    if isinstance(config.value("vision_feature_layer"), int):
        return (config.integer("vision_feature_layer", **limits),)
    found = config.integers("vision_feature_layer", **limits)
    if not found:
        raise config.error("vision_feature_layer", "names no layer")
    return found
