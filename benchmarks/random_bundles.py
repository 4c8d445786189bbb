"""Checkpoints of six families with random weights, large enough to measure, and their exported towers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

TEXT = {
    "vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 1, "num_attention_heads": 8,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 32768,
}  # fmt: skip
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
MROPE = {"rope_type": "default", "mrope_section": [8, 12, 12], "rope_theta": 1e4}


def tower(width: int, layers: int, heads: int, side: Any, patch: Any = 14) -> dict[str, Any]:
    """Fields of a ViT's config."""
    return {
        "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
        "image_size": side, "patch_size": patch,
    }  # fmt: skip


def _square(kind: str, side: int, **more: Any) -> dict[str, Any]:
    return {"image_processor_type": kind, "size": {"height": side, "width": side}, **more}


def _llava(t: Any) -> tuple[Any, dict[str, Any]]:
    vision = t.CLIPVisionConfig(**tower(768, 6, 12, 336))
    config = t.LlavaConfig(vision_config=vision, text_config=t.LlamaConfig(**TEXT), image_token_index=3)
    return config, _square("CLIPImageProcessor", 336, do_center_crop=False)


def _llava_next(t: Any) -> tuple[Any, dict[str, Any]]:
    vision = t.CLIPVisionConfig(**tower(512, 6, 8, 336))
    config = t.LlavaNextConfig(
        vision_config=vision, text_config=t.LlamaConfig(**TEXT), image_token_index=3, image_grid_pinpoints=PINPOINTS
    )
    sizes = {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}
    return config, {"image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": PINPOINTS, **sizes}


def _internvl(t: Any) -> tuple[Any, dict[str, Any]]:
    vision = t.InternVLVisionConfig(**tower(512, 6, 8, [448, 448], [14, 14]))
    config = t.InternVLConfig(vision_config=vision, text_config=t.Qwen2Config(**TEXT), image_token_id=3)
    return config, _square("GotOcr2ImageProcessor", 448)


def _paligemma(t: Any) -> tuple[Any, dict[str, Any]]:
    vision = t.SiglipVisionConfig(**tower(640, 6, 10, 448), vision_use_head=False)
    config = t.PaliGemmaConfig(
        vision_config=vision, text_config=t.GemmaConfig(**TEXT, head_dim=64), image_token_id=3, projection_dim=512
    )
    return config, _square("SiglipImageProcessor", 448)


def _idefics3(t: Any) -> tuple[Any, dict[str, Any]]:
    config = t.Idefics3Config(
        vision_config=tower(512, 6, 8, 364), text_config=t.LlamaConfig(**TEXT), image_token_id=3, scale_factor=2
    )
    sizes = {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}}
    return config, {"image_processor_type": "Idefics3ImageProcessor", **sizes}


def _qwen2_5_vl(t: Any) -> tuple[Any, dict[str, Any]]:
    vision = {
        "depth": 6, "hidden_size": 640, "intermediate_size": 1712, "num_heads": 8, "out_hidden_size": 512,
        "fullatt_block_indexes": [3, 5],
    }  # fmt: skip
    config = t.Qwen2_5_VLConfig(vision_config=vision, text_config=TEXT | {"rope_parameters": MROPE})
    return config, {"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 12845056}


FAMILIES: dict[str, Callable[[Any], tuple[Any, dict[str, Any]]]] = {
    "llava": _llava, "llava_next": _llava_next, "internvl": _internvl, "paligemma": _paligemma, "idefics3": _idefics3,
    "qwen2_5_vl": _qwen2_5_vl,
}  # fmt: skip


def bundle(work: Path, family: str) -> Path:
    """The bundle with a family's exported tower in WORK/family/b, made where it is not there yet."""
    out = work / family / "b"
    if not (out / "manifest.json").is_file():
        from vlm_edge.pipeline.exporting.export import export_model

        export_model(_checkpoint(work, family), out)
    return out


def _checkpoint(work: Path, family: str) -> Path:
    import torch
    import transformers
    from safetensors.torch import save_file

    root = work / family / "hf"
    root.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    config, preprocessor = FAMILIES[family](transformers)
    model = transformers.AutoModelForImageTextToText._model_mapping[type(config)](config).eval()
    model.config.save_pretrained(root)
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(state, root / "model.safetensors", metadata={"format": "pt"})
    (root / "preprocessor_config.json").write_text(json.dumps(preprocessor), "utf-8")
    return root
