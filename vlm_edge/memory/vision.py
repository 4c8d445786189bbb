"""Bytes that a vision tower and its projector hold while they run. Integers in, integers out."""

from __future__ import annotations

from vlm_edge.core.specs import ProjectorSpec, VisionSpec

FLOAT32_BYTES = 4
_JOINT_MULTIPLE = 8
"""Tokens of a view are padded to a multiple of this where views attend to each other (mllama's tower)."""


def attention_tokens(vision: VisionSpec, *, patches: int | None = None) -> int:
    """Tokens that attend to each other in a layer without windows: patches, class token and registers, of all joint views."""
    tokens = (vision.patches if patches is None else patches) + vision.prefix_tokens
    if vision.joint_views == 1:
        return tokens
    return vision.joint_views * -(-tokens // _JOINT_MULTIPLE) * _JOINT_MULTIPLE


def score_values(vision: VisionSpec, *, patches: int | None = None) -> int:
    """Attention scores of one sequence in the layer that has most: heads * T * T, or heads * T * W with windows alone."""
    tokens = attention_tokens(vision, patches=patches)
    window = (vision.window_px // vision.patch_px) ** 2
    windowed = bool(window) and not vision.full_attention_layers
    return vision.heads * tokens * (min(window, tokens) if windowed else tokens)


def vision_activation_bytes(
    vision: VisionSpec,
    *,
    views: int,
    patches: int | None = None,
    elem_bytes: int = FLOAT32_BYTES,
    fused: bool = False,
) -> int:
    """An upper bound on what the tower holds at once, in its widest layer.

    views: views encoded in one call.  patches: of each; None: as the tower's own view has.  fused: the attention's scores
    are never held as a matrix.  Per sequence of T tokens: the residual stream and its normed copy (2 T D), then the larger of
    the attention (q, k, v, output: 4 T D, and without a fused kernel the scores twice, before and after softmax) and the MLP
    (2 T M, before and after its activation; 3 T M with a gate).  Packed patches (no view of their own size) add the bias that
    keeps images apart, T * T.
    """
    tokens = attention_tokens(vision, patches=patches)
    sequences = -(-views // vision.joint_views)
    scores = 0 if fused else 2 * score_values(vision, patches=patches)
    bias = tokens * tokens if vision.temporal_patch > 1 and not fused else 0
    attention = 4 * tokens * vision.width + scores + bias
    widest = max(attention, (2 + vision.gated_mlp) * tokens * vision.mlp)
    pixels = 3 * vision.temporal_patch * (tokens - vision.prefix_tokens * vision.joint_views) * vision.patch_px**2
    if patches is None and vision.joint_views == 1:
        pixels = 3 * vision.temporal_patch * vision.image_px**2
    return sequences * elem_bytes * (pixels + 2 * tokens * vision.width + widest)


def projector_activation_bytes(projector: ProjectorSpec, *, patches: int, elem_bytes: int = FLOAT32_BYTES) -> int:
    """An upper bound on what the projector holds: its input, the inner layer before and after its activation, its output.

    patches: all that go in at once.  With a merge of m, m x m patches are one row.
    """
    rows = -(-patches // projector.merge**2)
    return rows * elem_bytes * (2 * projector.input + 2 * projector.hidden + projector.output)
