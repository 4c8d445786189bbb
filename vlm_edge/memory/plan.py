"""Plans of a run: from a model's sizes and a request, or from a bundle's own files and one question."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from vlm_edge.core.geometry import ImageLayout
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput
from vlm_edge.memory.formulas import image_decode_bytes
from vlm_edge.memory.items import run_items
from vlm_edge.memory.phases import PHASES, Basis, Plan, PlanItem, sum_up
from vlm_edge.memory.request import (
    ENCODE_VIEWS,
    PREFILL_CHUNK,
    Request,
    Subject,
    visual_of,
    visual_of_layouts,
    visual_of_tiles,
)

__all__ = [
    "ENCODE_VIEWS", "PHASES", "PREFILL_CHUNK", "RUNTIME_BYTES", "Basis", "Load", "Plan", "PlanItem", "plan_request", "plan_run",
]  # fmt: skip
RUNTIME_BYTES = 93 << 20
"""Python, NumPy, Pillow, tokenizers and ONNX Runtime with its threads: what a process holds once a model is loaded, less its
weights and cache, before it reads an image. 95 to 97 MiB through the command line with the embedded model, 86 to 107 with towers
of six families, 2026-11, Linux x86-64, ONNX Runtime 1.32."""
CUDA_RUNTIME_BYTES = 512 << 20
"""A CUDA context with ONNX Runtime's kernels, and cuBLAS workspaces: 0.25 to 0.5 GB are usual, and 8 to 32 MiB."""


def plan_request(subject: Subject, request: Request, *, budget_bytes: int) -> Plan:
    """The plan of a request; one image is read at a time, as a JPEG, which is decoded whole.

    Raises BadInput when the visual tokens exceed the context or the model's own positions end before it.
    """
    visual = visual_of(subject, request)
    if request.context > subject.text.max_positions:
        raise BadInput(
            f"--max-model-len {request.context} is more than the {subject.text.max_positions} positions of {subject.name}",
            remedy=f"use --max-model-len {subject.text.max_positions} or less",
        )
    if visual.prompt >= request.context:
        raise BadInput(
            f"{visual.prompt} visual tokens leave no room in a context of {request.context}",
            remedy="raise --max-model-len, or lower --max-tiles, --image-size or --keep",
        )
    pixels = request.image_px[0] * request.image_px[1]
    decode = (image_decode_bytes(pixels=pixels),) if visual.views else ()
    items = run_items(subject, request, visual, decode_bytes=decode, host_runtime=RUNTIME_BYTES)
    return sum_up(items, budget_bytes=budget_bytes, visual_tokens=visual.tokens)


@dataclass(frozen=True)
class Load:
    """What one run asks for: host bytes to decode each image, tiles per image, and the KV cache's length.

    layouts: how each image is cut, where a family's own rules do it; then `tiles` is not read.  again: the process has answered
    before, and its sessions keep what they held.  saliency_bytes: of a network that tiles are chosen by, at work.
    """

    decode_bytes: tuple[int, ...]
    tiles: int
    context_tokens: int
    kv_bits: int = 32
    layouts: tuple[ImageLayout, ...] | None = None
    again: bool = False
    saliency_bytes: int = 0


def stored_bytes(artifact_bytes: Mapping[str, int]) -> dict[str, int]:
    """Bytes by role of a bundle's artifacts -> bytes by item; lm_head is inside the decoder's graph, the projector in the tower's.

    Weights count once, since ONNX Runtime repacks them while it reads the file.
    """
    graph = {role: size for role, size in artifact_bytes.items() if ".graph" in role}
    stored = {
        "llm.weights": sum(size for role, size in graph.items() if role.startswith("llm")),
        "vision.weights": sum(size for role, size in graph.items() if role.startswith("vision")),
    }
    found = {name: size for name, size in stored.items() if size}
    found |= {"llm.lm_head": 0} if "llm.weights" in found else {}
    found |= {"projector.weights": 0} if "vision.weights" in found else {}
    return found | ({"llm.embedding": artifact_bytes["llm.embedding"]} if "llm.embedding" in artifact_bytes else {})


def plan_run(model: ModelSpec, artifact_bytes: Mapping[str, int], load: Load, *, budget_bytes: int) -> Plan:
    """Plan a run on a CPU from a bundle's own sizes; what the bundle lacks costs nothing, since it is not loaded.

    artifact_bytes: bytes by role.
    """
    absent = dict.fromkeys(("llm.weights", "llm.lm_head", "llm.embedding", "vision.weights", "projector.weights"), 0)
    subject = Subject(
        "bundle", model.text, model.vision, model.projector, model.geometry, absent | stored_bytes(artifact_bytes)
    )
    images = len(load.decode_bytes)
    if load.layouts is None:
        visual = visual_of_tiles(model.vision, model.geometry, tiles=load.tiles, images=images)
    else:
        visual = visual_of_layouts(model.vision, model.geometry, load.layouts)
    request = Request(
        target="cpu", unified=True, kv_cache={32: "fp32", 16: "fp16", 8: "int8", 4: "int4"}[load.kv_bits],
        vision_dtype="fp32", images=images, tiles=load.tiles, context=load.context_tokens, runtime_bytes=RUNTIME_BYTES,
        again=load.again,
    )  # fmt: skip
    items = run_items(subject, request, visual, decode_bytes=load.decode_bytes)
    if load.saliency_bytes:
        what = "the file twice, and one block of pixels with its activations"
        items.append(PlanItem("saliency.network", load.saliency_bytes, PHASES[1:], what, "bound"))
    return sum_up(items, budget_bytes=budget_bytes, visual_tokens=visual.prompt)
