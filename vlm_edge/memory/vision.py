"""Bytes that a vision tower and its projector hold while they run. Integers in, integers out."""

from __future__ import annotations

from vlm_edge.core.specs import ProjectorSpec, VisionSpec

FLOAT32_BYTES = 4
BIAS_COPIES = 4
"""The bias that keeps packed images apart, T * T: as booleans, as numbers, scaled, and what an arena keeps beside it."""
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
    score_copies: int = 2,
) -> int:
    """What the tower holds at once, as ONNX Runtime's arena holds it.

    views: views encoded in one call.  patches: of each; None: as the tower's own view has.  fused: the attention's scores
    are never held as a matrix.  score_copies: 1 where softmax works in place, as in ONNX Runtime's Attention on a CPU; 2 on a GPU
    and in graphs that spell the attention out.
    Per sequence of T tokens: three inner tensors of the MLP (six with a gate: both halves, the sigmoid and three products) and six
    times the width for residual stream, normed copies, q, k, v and output, with the scores; nine times where q, k and v are taken
    apart, as for packed patches, and eleven where fused kernels want them in an order of their own. Packed patches (no view of
    their own size) add BIAS_COPIES of the bias that keeps images apart.
    Measured on a CPU, 2026-11, MiB a view in fp32: 49 for CLIP-like 577 x 768 (this says 47), 91 for SigLIP-like 1024 x 640
    (88), 47 to 51 for InternViT-like 1025 x 512, whose kernel is fused (49); 2,060 for 4800 packed patches x 640 (2,090).
    """
    tokens = attention_tokens(vision, patches=patches)
    sequences = -(-views // vision.joint_views)
    held = 0 if fused else score_copies * score_values(vision, patches=patches)
    held += BIAS_COPIES * tokens * tokens if vision.temporal_patch > 1 and not fused else 0
    apart = fused or vision.temporal_patch > 1
    held += tokens * ((6 if vision.gated_mlp else 3) * vision.mlp + (11 if fused else 9 if apart else 6) * vision.width)
    pixels = 3 * vision.temporal_patch * (tokens - vision.prefix_tokens * vision.joint_views) * vision.patch_px**2
    if patches is None and vision.joint_views == 1:
        pixels = 3 * vision.temporal_patch * vision.image_px**2
    return sequences * elem_bytes * (pixels + held)


def projector_activation_bytes(projector: ProjectorSpec, *, patches: int, elem_bytes: int = FLOAT32_BYTES) -> int:
    """An upper bound on what the projector holds: its input, the inner layer before and after its activation, its output.

    patches: all that go in at once.  With a merge of m, m x m patches are one row.
    """
    rows = -(-patches // projector.merge**2)
    return rows * elem_bytes * (2 * projector.input + 2 * projector.hidden + projector.output)
