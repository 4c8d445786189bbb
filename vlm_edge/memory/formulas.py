"""Bytes of the decoder's cache and activations and of reading images. Integers in, integers out.

Weights stand in weights.py, the vision tower in vision.py.
"""

from __future__ import annotations

from vlm_edge.core.specs import TextSpec

FLOAT32_BYTES = 4


SCALE_BYTES = 4
"""A scale and a zero point, fp16 each, for a head's key or value of one token in a cache below 16 bits."""


def kv_cache_bytes(
    text: TextSpec, *, tokens: int, batch: int = 1, elem_bits: int = 16, scales: bool = False, windowed: bool = False
) -> int:
    """Bytes of a contiguous K and V cache, of the layers that attend to the sequence itself.

    tokens: prompt + visual + generated, per sequence.  scales: SCALE_BYTES for each head and token (0.516 of fp16 at 8 bits
    and head_dim 128, 0.266 at 4); scales that are fixed for each channel cost next to nothing.  windowed: layers with a
    sliding window keep no more than that; our engine binds buffers of one length to all layers.
    Source: 2 * layers * kv_heads * head_dim values per token.
    Example: 28 layers, 4 KV heads, head_dim 128, 16 bits -> 57_344 B per token.
    """
    own = text.layers - len(text.cross_attention_layers)
    short = len(text.sliding_layers) if windowed and text.sliding_window else 0
    positions = (own - short) * tokens + short * min(tokens, text.sliding_window)
    return 2 * positions * batch * _row_bytes(text, elem_bits, scales=scales)


def cross_cache_bytes(text: TextSpec, *, tokens: int, batch: int = 1, elem_bits: int = 16, scales: bool = False) -> int:
    """Bytes of keys and values that cross-attention layers make of `tokens` visual tokens, once for an image."""
    layers = len(text.cross_attention_layers)
    return 2 * layers * tokens * batch * _row_bytes(text, elem_bits, scales=scales)


def _row_bytes(text: TextSpec, elem_bits: int, *, scales: bool) -> int:
    """One layer's keys, or values, of one token."""
    return text.kv_heads * (-(-text.head_dim * elem_bits // 8) + SCALE_BYTES * scales)


def prefill_activation_bytes(
    text: TextSpec, *, tokens: int, elem_bytes: int = FLOAT32_BYTES, lean: bool = False
) -> int:
    """The decoder's activations for one chunk of `tokens` positions, without logits.

    As ONNX Runtime's arena holds them: gate and up in one matrix, its halves, the sigmoid and two products (6 I at once), q, k,
    v before and after the rotation, and nine times the hidden size for residual stream, normed copies and what lies between
    freed blocks. Measured on a CPU, 512 positions, 2026-11: 107 KiB a position for hidden 1024, inner 2816 (this says 114),
    and 230 for a 1.1B Llama (this says 224).
    lean: as a runtime that frees every tensor after its last reader, such as PyTorch: the residual stream, its normed copy and a
    layer's output; q, k, v and the attention's output, or the gated MLP's three inner tensors.
    No scores either way: ONNX Runtime's GroupQueryAttention works block by block (1.32 on a CPU: 21 MiB for 512 positions over
    4096, where the scores alone would be 256), and so do fused kernels on a GPU.
    """
    attention = (text.heads + 2 * text.kv_heads) * text.head_dim
    if lean:
        return elem_bytes * tokens * (3 * text.hidden + max(3 * text.intermediate, attention + text.hidden))
    return elem_bytes * tokens * (9 * text.hidden + 6 * text.intermediate + 2 * attention)


def prefix_score_bytes(text: TextSpec, *, tokens: int, positions: int, elem_bytes: int = FLOAT32_BYTES) -> int:
    """Attention scores of a prompt of `tokens` that sees all of itself; 0 for a causal decoder.

    positions: length of the cache's buffers.  GroupQueryAttention that is not causal does not work block by block: it holds
    heads * tokens * positions values. Seen with ONNX Runtime 1.32 on a CPU, 6 heads, 2048 positions, MiB above the session's
    own in a prefill of 1000, 1500 and 2000: 58, 86 and 112 (scores 47, 70 and 94). On a GPU it is a bound, not measured.
    """
    return elem_bytes * text.heads * tokens * positions if text.bidirectional_prefix else 0


SAMPLING_COPIES = 3
"""Logits in double precision while a token is drawn: scaled, as probabilities, and summed up."""


def decode_buffer_bytes(text: TextSpec, *, batch: int = 1, elem_bytes: int = FLOAT32_BYTES) -> int:
    """One position's activations, and the copies of its logits that sampling makes."""
    return batch * (prefill_activation_bytes(text, tokens=1, elem_bytes=elem_bytes) + SAMPLING_COPIES * 8 * text.vocab)


DECODE_BYTES_PER_PX = 7
"""Pillow's 4 B copy and the 3 B result, of PNG, JPEG and TIFF."""
DECODE_BYTES_PER_PX_BY_FORMAT = {"WEBP": 20, "GIF": 14}
"""Decoders that hold canvases of their own beside the image."""
COEFFICIENT_BYTES_PER_PX = 6
"""A progressive JPEG's coefficients: 2 bytes for each of three channels at full resolution, until its last scan is read."""


FIRST_IMAGE_BYTES = 5 << 20
"""Readers and tables that a process brings in with its first image, and keeps."""
STRIP_BYTES_PER_PX, STRIP_BYTES = 12, 13 << 20
"""Of the strip of greys and differences that is searched for detail, and the most that a strip takes. With the two constants
above, MiB beyond a loaded nano model for 0.01, 0.3, 1.0, 1.8, 2.1, 3.0 and 8.7 megapixels of PNG: 5, 11, 23, 30, 32, 38, 76;
measured on Linux x86-64, 2026-11: 5, 10, 22, 28, 30, 39, 71."""
BAND_BYTES_PER_PX = 32
"""Of the band at work: packed and unpacked rows, Pillow's copy, the result, a strip of greys with its differences, and sums."""
BAND_BYTES = 16 << 20
"""What reading by parts holds whatever the image: Pillow's small blocks, strips, the rows of a view that is not complete."""
CELL_BYTES = 110
"""Of a saliency map's cell while tiles are placed."""


def image_parts_bytes(*, band_px: int, canvas_px: int = 0, cells: int = 0) -> int:
    """Host bytes while an image is read band by band.

    canvas_px: pixels of the size that a family brings it to, of which two copies are held.  cells: of its saliency map; tiles are
    placed by that when the last band has gone.
    """
    return BAND_BYTES + max(BAND_BYTES_PER_PX * band_px, CELL_BYTES * cells) + 2 * 3 * canvas_px


def image_decode_bytes(*, pixels: int, file_format: str = "", reduction: int = 1, progressive: bool = False) -> int:
    """Host bytes while an image of that format is read and searched for detail.

    reduction: the factor by which a JPEG's sides are divided while it is decoded; its coefficients stay at full size.
    """
    shown = -(-pixels // reduction**2)
    decoded = shown * DECODE_BYTES_PER_PX_BY_FORMAT.get(file_format, DECODE_BYTES_PER_PX)
    return min(STRIP_BYTES_PER_PX * shown, STRIP_BYTES) + decoded + progressive * COEFFICIENT_BYTES_PER_PX * pixels
