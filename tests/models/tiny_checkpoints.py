"""Tiny random checkpoints of the real architectures, as transformers saves them, and the same tensors under other names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

TEXT = {
    "vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 2, 2], "rope_theta": 10000.0}
Renaming = tuple[tuple[str, str], ...]


def square(views: int) -> dict[str, Any]:
    return {"pixel_values": noise(views, 3, 28, 28)}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


@dataclass(frozen=True)
class Family:
    """parts: what an exporter loads.  old: (prefix as saved, prefix of transformers 4), none where they agree."""

    config: Callable[[], Any]
    parts: tuple[str, ...]
    inputs: Callable[[], dict[str, Any]]
    old: Renaming = ()


def _llava(vision: Any, **options: Any) -> Any:
    text = transformers.LlamaConfig(**TEXT)
    return transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=3, **options)


TOWER_AND_PROJECTOR = ("model.vision_tower", "model.multi_modal_projector")
WRAPPED: Renaming = (("vision_tower.", "vision_tower.vision_model."),)
FAMILIES: dict[str, Family] = {
    "llava": Family(
        lambda: _llava(transformers.CLIPVisionConfig(**VISION)), TOWER_AND_PROJECTOR, lambda: square(2), WRAPPED
    ),
    "llava-siglip": Family(
        lambda: _llava(
            transformers.SiglipVisionConfig(**VISION, vision_use_head=False), vision_feature_select_strategy="full"
        ),
        TOWER_AND_PROJECTOR,
        lambda: square(2),
        WRAPPED,
    ),
    # A gated MLP whose two halves are one stored tensor.
    "llava-dinov2": Family(
        lambda: _llava(transformers.Dinov2Config(**VISION, use_swiglu_ffn=True)),
        TOWER_AND_PROJECTOR,
        lambda: square(2),
    ),
    "llava_next": Family(
        lambda: transformers.LlavaNextConfig(
            vision_config=transformers.CLIPVisionConfig(**VISION),
            text_config=transformers.LlamaConfig(**TEXT),
            image_token_index=3,
            image_grid_pinpoints=[[28, 56]],
        ),
        (*TOWER_AND_PROJECTOR, "model.image_newline"),
        lambda: {"pixel_values": noise(1, 3, 3, 28, 28), "image_sizes": torch.tensor([[28, 56]])},
        WRAPPED,
    ),
    "internvl": Family(
        lambda: transformers.InternVLConfig(
            vision_config=transformers.InternVLVisionConfig(
                **VISION | {"image_size": [28, 28], "patch_size": [14, 14]}
            ),
            text_config=transformers.Qwen2Config(**TEXT),
            image_token_id=3,
        ),
        TOWER_AND_PROJECTOR,
        lambda: square(2),
    ),
    "idefics3": Family(
        lambda: transformers.Idefics3Config(
            vision_config=VISION, text_config=transformers.LlamaConfig(**TEXT), image_token_id=3
        ),
        ("model.vision_model", "model.connector"),
        lambda: {"pixel_values": noise(1, 2, 3, 28, 28)},
    ),
    "smolvlm": Family(
        lambda: transformers.SmolVLMConfig(
            vision_config=VISION, text_config=transformers.LlamaConfig(**TEXT), image_token_id=3
        ),
        ("model.vision_model", "model.connector"),
        lambda: {"pixel_values": noise(1, 2, 3, 28, 28)},
    ),
    "idefics2": Family(
        lambda: transformers.Idefics2Config(
            vision_config=VISION,
            text_config=transformers.MistralConfig(**TEXT),
            perceiver_config={
                "hidden_size": 48, "resampler_n_latents": 4, "resampler_depth": 2, "resampler_n_heads": 4,
                "resampler_head_dim": 12, "num_key_value_heads": 2,
            },
            image_token_id=3,
        ),
        ("model.vision_model", "model.connector"),
        lambda: {"pixel_values": noise(1, 2, 3, 28, 28)},
    ),
    "paligemma": Family(
        lambda: transformers.PaliGemmaConfig(
            vision_config=transformers.SiglipVisionConfig(**VISION, vision_use_head=False),
            text_config=transformers.GemmaConfig(**TEXT, head_dim=12),
            image_token_id=3,
            projection_dim=48,
        ),
        TOWER_AND_PROJECTOR,
        lambda: square(2),
        WRAPPED,
    ),
    "qwen2_5_vl": Family(
        lambda: transformers.Qwen2_5_VLConfig(
            vision_config={
                "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 48,
                "fullatt_block_indexes": [1],
            },
            text_config=TEXT | {"rope_parameters": MROPE},
        ),
        ("model.visual",),
        lambda: {"pixel_values": noise(32, 1176), "image_grid_thw": torch.tensor([[1, 4, 8]])},
    ),
    "qwen2_vl": Family(
        lambda: transformers.Qwen2VLConfig(
            vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2},
            text_config=TEXT | {"rope_parameters": MROPE},
        ),
        ("model.visual",),
        lambda: {"pixel_values": noise(32, 1176), "image_grid_thw": torch.tensor([[1, 4, 8]])},
    ),
}  # fmt: skip
ALONE = tuple(name for name in FAMILIES if not name.startswith("qwen"))
"""Families whose text model exists without them."""


def build(family: str, *, dtype: torch.dtype = torch.float32, tied: bool = False) -> Any:
    """A model whose every parameter is random: initialisation leaves many at one value, which would hide a mix-up."""
    config = FAMILIES[family].config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    model_class = transformers.AutoModelForImageTextToText._model_mapping[type(config)]
    model = model_class(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
    return model.to(dtype)


def save_state(model: Any, root: Path) -> None:
    """The model under its class's own names, the new layout, tied parameters once."""
    model.config.save_pretrained(root)
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})


def rename(root: Path, renaming: Renaming) -> None:
    """Replace prefixes of a single file's names."""
    path = root / "model.safetensors"
    tensors = load_file(path)
    renamed = {}
    for name, tensor in tensors.items():
        prefix, new = next(((old, new) for old, new in renaming if name.startswith(old)), ("", ""))
        renamed[new + name.removeprefix(prefix)] = tensor.clone()
    save_file(renamed, path, metadata={"format": "pt"})
