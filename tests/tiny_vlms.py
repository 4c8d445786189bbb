"""Random VLMs of every family in miniature, with odd sizes, and the arrays that their images become.

Sizes avoid what hides a mistake: five layers, three heads, widths that are no powers of two, no two equal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

Arrays = Mapping[str, np.ndarray]
TEXT = {
    "vocab_size": 96, "hidden_size": 60, "intermediate_size": 104, "num_hidden_layers": 1, "num_attention_heads": 6,
    "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
VIT = {"hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 5, "num_attention_heads": 3, "patch_size": 7}
CLIP = {"model_type": "clip_vision_model", "image_size": 28, **VIT}
SIGLIP = {"model_type": "siglip_vision_model", "image_size": 28, "vision_use_head": False, **VIT}
DINO = {"model_type": "dinov2", "image_size": 28, "mlp_ratio": 2, "layerscale_value": 0.5}
DINO |= {name: value for name, value in VIT.items() if name != "intermediate_size"}
SIDE = 28


@dataclass(frozen=True)
class Tiny:
    """A family's model, the arrays for a number of images, and what transformers makes of them, [rows, Dl]."""

    model: Callable[[], Any]
    arrays: Callable[[Any, int, int], Arrays]
    """(model, seed, views) -> arrays."""
    reference: Callable[[Any, Arrays], np.ndarray]


def randomized(model: Any, seed: int = 0) -> Any:
    """Weights that matter: what is initialised to zeros or ones (biases, norms, class tokens) becomes random as well."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                centre = 1.0 if "norm" in name and name.endswith("weight") else float(parameter.float().mean())
                parameter.copy_(centre + 0.1 * noise)
            else:
                fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
                parameter.copy_(noise * (0.3 if "embed" in name or "token" in name else fan_in**-0.5))
    return model.float().eval()


def build(model_class: str, config: Any) -> Any:
    torch.manual_seed(0)
    return randomized(getattr(transformers, model_class)(config))


def llava(vision: Mapping[str, Any] = CLIP, layer: Any = -2, strategy: str = "default") -> Any:
    config = transformers.LlavaConfig(
        vision_config=dict(vision), text_config={"model_type": "llama", **TEXT}, vision_feature_layer=layer,
        vision_feature_select_strategy=strategy, image_token_index=3,
    )  # fmt: skip
    return build("LlavaForConditionalGeneration", config)


def llava_next(layer: Any = -2) -> Any:
    config = transformers.LlavaNextConfig(
        vision_config=CLIP, text_config={"model_type": "llama", **TEXT}, vision_feature_layer=layer,
        vision_feature_select_strategy="default", image_token_index=3, image_grid_pinpoints=[[28, 56], [56, 28]],
    )  # fmt: skip
    return build("LlavaNextForConditionalGeneration", config)


def internvl(layer: int = -1, **vision: Any) -> Any:
    sizes = {"image_size": [SIDE, SIDE], **VIT, "patch_size": [7, 7], "layer_scale_init_value": 0.5, **vision}
    config = transformers.InternVLConfig(
        vision_config={"model_type": "internvl_vision", **sizes}, text_config={"model_type": "qwen2", **TEXT},
        vision_feature_layer=layer, downsample_ratio=0.5, image_token_id=3,
    )  # fmt: skip
    return build("InternVLForConditionalGeneration", config)


def idefics3(name: str = "Idefics3") -> Any:
    sizes = {"image_size": SIDE, **VIT}
    config = getattr(transformers, f"{name}Config")(
        vision_config=sizes, text_config={"model_type": "llama", **TEXT}, scale_factor=2, image_token_id=3
    )
    return build(f"{name}ForConditionalGeneration", config)


def idefics2() -> Any:
    sizes = {"image_size": 56, **VIT}
    perceiver = {
        "hidden_size": 60, "resampler_n_latents": 5, "resampler_depth": 2, "resampler_n_heads": 6,
        "resampler_head_dim": 10, "num_key_value_heads": 2,
    }  # fmt: skip
    config = transformers.Idefics2Config(
        vision_config=sizes, perceiver_config=perceiver, text_config={"model_type": "mistral", **TEXT}, image_token_id=3
    )
    return build("Idefics2ForConditionalGeneration", config)


def paligemma() -> Any:
    config = transformers.PaliGemmaConfig(
        vision_config={**SIGLIP, "projection_dim": 60}, projection_dim=60, image_token_index=3,
        text_config={"model_type": "gemma", **TEXT, "head_dim": 16, "vocab_size": 98},
    )  # fmt: skip
    return build("PaliGemmaForConditionalGeneration", config)


ROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 2], "rope_theta": 1e4}}


def qwen2_vl() -> Any:
    vision = {"depth": 5, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2, "hidden_size": 60, "patch_size": 7}
    config = transformers.Qwen2VLConfig(vision_config=vision, text_config={**TEXT, **ROPE}, image_token_id=3)
    return build("Qwen2VLForConditionalGeneration", config)


def qwen2_5_vl() -> Any:
    vision = {
        "depth": 5, "hidden_size": 48, "num_heads": 3, "intermediate_size": 88, "out_hidden_size": 60, "patch_size": 7,
        "window_size": 56, "fullatt_block_indexes": [1, 4],
    }  # fmt: skip
    config = transformers.Qwen2_5_VLConfig(vision_config=vision, text_config={**TEXT, **ROPE}, image_token_id=3)
    return build("Qwen2_5_VLForConditionalGeneration", config)


def views(_model: Any, seed: int, count: int) -> Arrays:
    """Smooth colours and noise in equal parts, as pixels after normalisation are."""
    return {"pixel_values": picture(seed, (count, 3, SIDE, SIDE))}


def picture(seed: int, shape: Sequence[int]) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (random.normal(size=(*shape[:-2], 1, 1)) + random.normal(size=shape)).astype(np.float32)


def padded_views(_model: Any, seed: int, count: int) -> Arrays:
    """Views of different sizes, one of which fills the call's; sizes are no multiples of a patch."""
    sizes = [(40, 53), (53, 30), (24, 56), (56, 56)]
    chosen = [sizes[(seed + i) % len(sizes)] for i in range(count)]
    height, width = (max(size[axis] for size in chosen) for axis in (0, 1))
    mask = np.zeros((count, height, width), np.int64)
    for row, (h, w) in zip(mask, chosen, strict=True):
        row[:h, :w] = 1
    return {
        "pixel_values": (picture(seed, (count, 3, height, width)) * mask[:, None]).astype(np.float32),
        "pixel_attention_mask": mask,
    }


GRIDS = [(1, 6, 10), (1, 16, 8), (1, 2, 2), (1, 14, 18), (2, 4, 6)]
"""Frames, rows, columns of patches; a window is 8 x 8."""


def packed(model: Any, seed: int, count: int) -> Arrays:
    """`count` images of different sizes in one row of patches."""
    grid = torch.tensor([GRIDS[(seed + i) % len(GRIDS)] for i in range(count)])
    config = model.config.vision_config
    patches = int(grid.prod(-1).sum())
    width = config.in_channels * config.temporal_patch_size * config.patch_size**2
    arrays = {
        "pixel_values": picture(seed, (patches, 1, width))[:, 0],
        "position_ids": get_vision_position_ids(grid, config.spatial_merge_size).numpy(),
        "cu_seqlens": get_vision_cu_seqlens(grid).numpy(),
    }
    if hasattr(config, "window_size"):
        index, cu = get_vision_window_index(grid, config.spatial_merge_size, config.window_size, config.patch_size)
        arrays |= {"window_index": index.numpy(), "cu_window_seqlens": cu.numpy()}
    return {**arrays, "grid": grid.numpy()}


def features(model: Any, arrays: Arrays) -> np.ndarray:
    """`get_image_features(...).pooler_output` as rows [rows, Dl]."""
    given = {name: torch.from_numpy(value) for name, value in arrays.items()}
    match given:
        case {"grid": grid}:
            arguments = {"pixel_values": given["pixel_values"], "image_grid_thw": grid}
        case {"pixel_attention_mask": mask}:
            arguments = {"pixel_values": given["pixel_values"][None], "pixel_attention_mask": mask[None]}
        case _:
            arguments = {"pixel_values": given["pixel_values"]}
    return rows_of(model.get_image_features(**arguments).pooler_output)


def of_one_image(model: Any, arrays: Arrays) -> np.ndarray:
    """Idefics3 takes [images, views, ...]."""
    return features(model, {"pixel_values": arrays["pixel_values"][None]})


def of_tiles(model: Any, arrays: Arrays) -> np.ndarray:
    """LLaVA-NeXT before it lays tiles out as a grid, which is the host's work: `pack_image_features` is left out."""
    kept: list[torch.Tensor] = []

    def keep(image_features: Sequence[torch.Tensor], *_args: Any, **_named: Any) -> tuple[Any, None]:
        kept.extend(image_features)
        return list(image_features), None

    pack, model.model.pack_image_features = model.model.pack_image_features, keep
    try:
        pixels = torch.from_numpy(arrays["pixel_values"])
        # 28 x 56 has two tiles and the global view; the rest of a batch are further images
        pixels = torch.cat((pixels, pixels.new_zeros(-len(pixels) % 3, *pixels.shape[1:]))).reshape(
            -1, 3, 3, SIDE, SIDE
        )
        model.get_image_features(pixels, image_sizes=torch.tensor([[28, 56]] * len(pixels)))
    finally:
        model.model.pack_image_features = pack
    return rows_of(torch.cat(kept)[: len(arrays["pixel_values"])])


def rows_of(output: Any) -> np.ndarray:
    whole = (
        output if isinstance(output, torch.Tensor) else torch.cat([part.reshape(-1, part.shape[-1]) for part in output])
    )
    return whole.detach().reshape(-1, whole.shape[-1]).numpy()


FAMILIES = {
    "llava": Tiny(llava, views, features),
    "llava_next": Tiny(llava_next, views, of_tiles),
    "internvl": Tiny(internvl, views, features),
    "idefics3": Tiny(idefics3, views, of_one_image),
    "idefics2": Tiny(idefics2, padded_views, features),
    "paligemma": Tiny(paligemma, views, features),
    "qwen2_vl": Tiny(qwen2_vl, packed, features),
    "qwen2_5_vl": Tiny(qwen2_5_vl, packed, features),
}


def graph_inputs(arrays: Arrays) -> dict[str, np.ndarray]:
    """Without what only the reference needs."""
    return {name: value for name, value in arrays.items() if name != "grid"}


def component(family: str, model: Any) -> Any:
    """The family's module for export."""
    import importlib

    return importlib.import_module(f"vlm_edge.models.{family}.components").VisionAndProjector(model)


def run_module(module: Any, arrays: Arrays) -> np.ndarray:
    with torch.no_grad():
        output = module(**{name: torch.from_numpy(value) for name, value in graph_inputs(arrays).items()})
    return rows_of(output)
