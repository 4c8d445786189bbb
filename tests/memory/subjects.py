"""Models to plan in tests: small ones whose bytes can be worked out by hand, and published shapes."""

from __future__ import annotations

from vlm_edge.core.geometry import PatchGeometry, TokenGeometry
from vlm_edge.core.specs import ProjectorSpec, TextSpec, VisionSpec
from vlm_edge.memory.request import Subject


def text(hidden: int, inner: int, layers: int, heads: int, kv: int, vocab: int, *, tied: bool = False) -> TextSpec:
    """A Llama-like decoder without biases; parameters counted matrix by matrix."""
    head_dim = hidden // heads
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv * head_dim
    return TextSpec(
        hidden=hidden, layers=layers, heads=heads, kv_heads=kv, head_dim=head_dim, intermediate=inner, vocab=vocab,
        max_positions=1 << 20, tied_embeddings=tied, architecture="llama", embedding_parameters=vocab * hidden,
        lm_head_parameters=0 if tied else vocab * hidden, linear_parameters=layers * (attention + 3 * hidden * inner),
        other_parameters=(2 * layers + 1) * hidden,
    )  # fmt: skip


VICUNA_7B = text(4096, 11008, 32, 32, 32, 32000)
CLIP_L_336 = VisionSpec(
    width=1024, layers=23, heads=16, mlp=4096, image_px=336, patch_px=14, parameters=290_909_184
)  # fmt: skip
LLAVA = Subject(
    "llava", VICUNA_7B, CLIP_L_336, ProjectorSpec(1024, 4096, 4096, parameters=20_979_712),
    TokenGeometry(view_px=336, grid=(24, 24)),
)  # fmt: skip
QWEN_TOWER = VisionSpec(
    width=1280, layers=32, heads=16, mlp=3420, image_px=448, patch_px=14, gated_mlp=True, prefix_tokens=0,
    temporal_patch=2, window_px=112, full_attention_layers=(7, 15, 23, 31), parameters=631_975_680,
)  # fmt: skip
QWEN = Subject(
    "qwen", text(3584, 18944, 28, 28, 4, 152064), QWEN_TOWER,
    ProjectorSpec(5120, 5120, 3584, kind="patch_merger", merge=2, parameters=44_574_464),
    PatchGeometry(view_px=448, grid=(16, 16), patch_px=14, merge=2, min_pixels=3136, max_pixels=12_845_056),
)  # fmt: skip
