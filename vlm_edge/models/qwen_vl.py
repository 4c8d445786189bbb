"""What Qwen2-VL and Qwen2.5-VL share: a tower for any size, a merger of patches, a decoder with three-part positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec, VisionSpec
from vlm_edge.models.decoders import text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.towers import TOWERS, linear, vision_spec


def qwen_vl_spec(
    config: Mapping[str, Any], *, family: str, tower: str, output: str, norm: Callable[[int], int]
) -> ModelSpec:
    """A tower without position table, a merger of 2 x 2 patches, a decoder with three-part rotary positions.

    output: the vision config's field for the merger's output.  norm: parameters of the merger's norm from its width.
    """
    root = Fields(config, {"tie_word_embeddings": False})
    seen = root.part("vision_config").with_defaults(TOWERS[tower].defaults)
    read = _text_fields(root)
    tied = root.flag("tie_word_embeddings") or read.with_defaults({"tie_word_embeddings": False}).flag(
        "tie_word_embeddings"
    )
    vision = vision_spec(seen, tower)
    text = text_spec(read, f"{family}_text", tied=tied)
    width = seen.integer(output)
    if width != text.hidden:
        raise seen.error(output, f"{width} differs from the decoder's hidden_size {text.hidden}")
    merge = seen.integer("spatial_merge_size")
    inner = vision.width * merge**2
    return ModelSpec(
        family=family,
        vision=vision,
        projector=ProjectorSpec(
            input=inner,
            hidden=inner,
            output=width,
            kind="patch_merger",
            merge=merge,
            parameters=norm(vision.width) + linear(inner, inner) + linear(inner, width),
        ),
        text=text,
        geometry=TokenGeometry(view_px=vision.image_px, grid=_grid(seen, vision, merge)),
    )


def _text_fields(root: Fields) -> Fields:
    """`text_config`, or the whole file: published checkpoints have the decoder's fields beside the others."""
    if root.has("text_config"):
        return root.part("text_config")
    root.integer("hidden_size")
    return root


def _grid(seen: Fields, vision: VisionSpec, merge: int) -> tuple[int, int]:
    side = vision.image_px // vision.patch_px // merge
    if not side:
        raise seen.error("spatial_merge_size", f"{merge} is larger than a view of {vision.image_px} px")
    return side, side
