"""Bytes of each part of a pipeline, from specifications alone. Integers in, integers out."""

from __future__ import annotations

from vlm_edge.core.specs import TextSpec, VisionSpec

FLOAT32_BYTES = 4


def kv_cache_bytes(text: TextSpec, *, tokens: int, batch: int = 1, elem_bits: int = 16) -> int:
    """Bytes of a contiguous K and V cache.

    tokens: prompt + visual + generated, per sequence.  Source: 2 * layers * kv_heads * head_dim values per token.
    Example: 28 layers, 4 KV heads, head_dim 128, 16 bits -> 57_344 B per token.
    """
    return 2 * text.layers * text.kv_heads * text.head_dim * tokens * batch * elem_bits // 8


def vision_activation_bytes(
    vision: VisionSpec, *, views: int, elem_bytes: int = FLOAT32_BYTES, fused: bool = False
) -> int:
    """An upper bound on what the tower holds at once, in its widest layer.

    views: views encoded in one call.  Per view, with T = patches + 1 tokens: the residual stream and its normed copy
    (2 T D), then the larger of the attention (q, k, v, output: 4 T D, and without a fused kernel heads * T * T scores twice,
    before and after softmax) and the MLP (2 T M, before and after its activation).
    """
    tokens = vision.patches + 1
    scores = 0 if fused else 2 * vision.heads * tokens * tokens
    attention = 4 * tokens * vision.width + scores
    widest = max(attention, 2 * tokens * vision.mlp)
    pixels = 3 * vision.image_px * vision.image_px
    return views * elem_bytes * (pixels + 2 * tokens * vision.width + widest)


def prefill_activation_bytes(text: TextSpec, *, tokens: int, elem_bytes: int = FLOAT32_BYTES) -> int:
    """An upper bound on the decoder's activations for one chunk of `tokens` positions, without logits.

    Source: the residual stream twice, q, k and v, and the gated MLP's three inner tensors, all of one layer.
    """
    inner = 3 * text.intermediate
    attention = (text.heads + 2 * text.kv_heads) * text.head_dim + text.hidden
    return elem_bytes * tokens * (2 * text.hidden + max(inner, attention))


DECODE_BYTES_PER_PX = 9
"""Pillow's 4 B copy, the 3 B result, 1 B of grey and strips; measured on PNG, JPEG and TIFF."""
DECODE_BYTES_PER_PX_BY_FORMAT = {"WEBP": 20, "GIF": 14}
"""Decoders that hold canvases of their own beside the image."""
COEFFICIENT_BYTES_PER_PX = 6
"""A progressive JPEG's coefficients: 2 bytes for each of three channels at full resolution, until its last scan is read."""


def image_decode_bytes(*, pixels: int, file_format: str = "", reduction: int = 1, progressive: bool = False) -> int:
    """Host bytes while an image of that format is read and searched for detail.

    reduction: the factor by which a JPEG's sides are divided while it is decoded; its coefficients stay at full size.
    """
    decoded = -(-pixels // reduction**2) * DECODE_BYTES_PER_PX_BY_FORMAT.get(file_format, DECODE_BYTES_PER_PX)
    return decoded + progressive * COEFFICIENT_BYTES_PER_PX * pixels
