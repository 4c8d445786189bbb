"""Which part of a model a stored tensor belongs to, by its name, and whether the decoder is the one that config.json tells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from vlm_edge.core.shards import TensorRef
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput

_VISION = ("vision_tower.", "vision_model.", "visual.")
_PROJECTOR = ("multi_modal_projector.", "connector.", "image_newline")
_BUFFERS = (".rotary_emb.inv_freq", ".position_ids")
_PACKED = (".qweight", ".qzeros", ".scales")
PACKED_PER_WORD = 8


def part_of(name: str) -> str:
    """`vision`, `projector`, `embedding`, `lm_head` or `decoder`; empty for buffers that no loader needs."""
    if name.endswith(_BUFFERS):
        return ""
    if any(piece in name for piece in _VISION):
        return "vision"
    if any(piece in name for piece in _PROJECTOR):
        return "projector"
    return {"embed_tokens.weight": "embedding", "lm_head.weight": "lm_head"}.get(
        ".".join(name.split(".")[-2:]), "decoder"
    )


def stored_decoder(tensors: Iterable[TensorRef], text: TextSpec) -> Mapping[str, int]:
    """Bytes by item of a decoder that is stored in AutoAWQ's format; nothing for one that is yet to be packed.

    Raises BadInput where the files hold another number of weights than config.json says.
    """
    decoder = [tensor for tensor in tensors if part_of(tensor.name) in ("decoder", "embedding", "lm_head")]
    packed = [tensor for tensor in decoder if tensor.name.endswith(".qweight")]
    sizes = {"embedding": 0, "lm_head": 0, "decoder": 0}
    weights = 0
    for tensor in decoder:
        sizes[part_of(tensor.name)] += tensor.bytes
        if part_of(tensor.name) == "decoder" and not tensor.name.endswith(_PACKED):
            weights += math.prod(tensor.shape)
    weights += sum(PACKED_PER_WORD * math.prod(tensor.shape) for tensor in packed)
    told = text.linear_parameters + text.other_parameters
    if weights != told:
        raise BadInput(
            f"config.json describes a decoder of {told:,} weights, the files hold {weights:,}",
            remedy="download config.json and the weights of one and the same checkpoint",
        )
    if not packed:
        return {}
    return {"llm.weights": sizes["decoder"], "llm.embedding": sizes["embedding"], "llm.lm_head": sizes["lm_head"]}
