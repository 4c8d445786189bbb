"""What a run holds, item by item: the list that every plan of load, preprocess, encode, prefill and decode is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from vlm_edge.core.specs import TextSpec
from vlm_edge.memory import formulas, vision, weights
from vlm_edge.memory.cpu_graph import CpuGraph, cpu_graph, stored_graph, tower_beside_bytes, tower_repacked_bytes
from vlm_edge.memory.phases import PHASES, Place, PlanItem
from vlm_edge.memory.request import BITS, Request, Subject, Visual
from vlm_edge.units import format_bytes

RESERVE_SHARE, TIGHT_SHARE = 16, 64
"""One part in so many of what comes and goes is lost between the blocks of an allocator: where calls differ in shape, one after
another or from image to image, and in an arena that has seen one shape alone."""
REUSE_LOSS = 4
MOVING = frozenset({"vision.activations", "visual_embeddings", "prefill.activations", "logits", "decode.buffers"})
MAPPED_BYTES = 64 << 10
"""Of a mapped file, what Linux brings in around one row that is read (fault_around_bytes)."""
TEXT_TOOLS_BYTES = 6 << 20
"""Tokenizer, chat template and what else a pipeline holds of its own, with the embedded model: 3 to 6 MiB, 2026-11."""
EMBEDDING_COPIES = 2
"""What the encoder returned, and its place among the prompt's embeddings."""
_BESIDE = "each group's scale once more, and the sum of its codes"
_LATER = PHASES[1:]
_WITH_TOKENS = ("encode", "prefill", "decode")


def _kept(request: Request, first: str, apart: Place) -> tuple[str, ...]:
    """Phases in which a session's activations are held: its arena keeps them from their first phase on, until it is closed.

    Seen with ONNX Runtime 1.32 on a CPU: resident memory stays at its peak after a run. A process that has answered before holds
    them while it reads the next image. Only where tower and decoder take turns are their sessions closed in between.
    """
    if request.release_tower:
        return (first,) if first == "encode" else ("prefill", "decode")
    if request.again:
        return _LATER if apart == "device" else _WITH_TOKENS
    return _WITH_TOKENS[_WITH_TOKENS.index(first) :]


def run_items(
    subject: Subject, request: Request, visual: Visual, *, decode_bytes: Sequence[int] = (), host_runtime: int = 0
) -> list[PlanItem]:
    """Every item of a run, those of no bytes included.

    decode_bytes: host bytes while each image is read.  host_runtime: of the process beside a GPU.
    Raises BadInput where a format does not suit the model.
    """
    apart: Place = "host" if request.target == "cuda" and not request.unified else "device"
    items = [
        PlanItem(
            "runtime", request.runtime_bytes, PHASES, "context, libraries and workspaces",
            "measured" if request.target == "cpu" else "bound",
        ),
        PlanItem("runtime.text", TEXT_TOOLS_BYTES, PHASES, "tokenizer and chat template", "measured", "", apart),
        *_weights(subject, request, visual),
        *_vision(subject, request, visual, apart),
        PlanItem(
            "image.readers", formulas.FIRST_IMAGE_BYTES if visual.views else 0, _LATER, "code and tables for reading images",
            "measured", "", apart,
        ),
        PlanItem(
            "image.decode", max(decode_bytes, default=0), ("preprocess",), "the largest image, by its format", "bound",
            "uint8", apart,
        ),
        *_decoder(subject, request, visual, apart),
    ]  # fmt: skip
    if request.target == "cpu" and not request.release_tower:
        items = _in_one_arena(items)
    moving = [item for item in items if item.name in MOVING and item.place == "device"]
    most = max(sum(item.bytes for item in moving if phase in item.phases) for phase in _WITH_TOKENS)
    share = reserve_share(request, visual)
    items.append(PlanItem("reserve", most // share, _WITH_TOKENS, f"1/{share} of what comes and goes", "bound"))
    items.append(PlanItem("margin", request.margin_bytes, PHASES, "as asked for", "exact"))
    if request.target == "cuda":  # on a CPU that is the runtime itself
        libraries = "interpreter and libraries"
        items.append(PlanItem("host.runtime", host_runtime, PHASES, libraries, "measured", "", apart))
    return items


def reserve_share(request: Request, visual: Visual) -> int:
    """RESERVE_SHARE, or TIGHT_SHARE where every call of the tower has one shape."""
    one_shape = request.images <= 1 and visual.at_once <= request.encode_views
    return TIGHT_SHARE if request.target == "cpu" and one_shape and not request.again else RESERVE_SHARE


def _in_one_arena(items: Sequence[PlanItem]) -> list[PlanItem]:
    """A CPU's sessions share an arena: the decoder works where the tower did, and adds what it needs beyond that.

    One part in REUSE_LOSS of what both need lies in blocks that the other cannot use.
    """
    tower = sum(item.bytes for item in items if item.name == "vision.activations")

    def shared(item: PlanItem) -> PlanItem:
        if item.name != "prefill.activations" or not tower:
            return item
        there = min(item.bytes, tower) * (REUSE_LOSS - 1) // REUSE_LOSS
        return replace(
            item, bytes=item.bytes - there, formula=f"{item.formula}; {format_bytes(there)} lie where the tower's did"
        )

    return [shared(item) for item in items]


def _weights(subject: Subject, request: Request, visual: Visual) -> list[PlanItem]:
    tower = _tower_weights(subject, request)
    if request.target != "cpu":
        return [*_decoder_weights(subject, request), *tower]
    stored = subject.stored.get("llm.weights")
    graph = cpu_graph(subject.text, request) if stored is None else stored_graph(subject.text, stored)
    decoder = _decoder_weights(subject, request, graph)
    if not request.again:
        words = max(0, request.context - visual.prompt)
        decoder = [_rows_read(item, subject.text, words) if item.name == "llm.embedding" else item for item in decoder]
    return [*decoder, *tower, _repacked(subject, graph, sum(item.bytes for item in tower), request)]


def _decoder_weights(subject: Subject, request: Request, graph: CpuGraph | None = None) -> list[PlanItem]:
    """graph: on a CPU, what its file is like."""
    text, stored, group = subject.text, subject.stored, request.group_size
    phases = ("prefill", "decode") if request.release_tower else PHASES
    kind = {"awq": f"int4 g{group}", "int8": f"int8 g{group}"}.get(request.weights, request.weights)
    if "llm.weights" not in stored and request.weights == "awq":
        weights.check_groups(text, group)
    head = request.lm_head if graph is None or request.lm_head != "fp16" or request.weights == "fp16" else "fp32"
    items = [
        _item(stored, "llm.weights", kind, phases, _linear_formula(text.linear_parameters, request),
              lambda: graph.weights_bytes if graph else weights.decoder_bytes(text, weights=request.weights, group_size=group)),
        _item(stored, "llm.embedding", "fp32" if request.weights == "fp32" else "fp16", phases,
              f"{text.embedding_parameters:,} values", lambda: weights.embedding_bytes(text, weights=request.weights)),
        _item(stored, "llm.lm_head", head, phases, f"{text.hidden:,} x {text.vocab:,}",
              lambda: graph.head_bytes if graph else weights.lm_head_bytes(text, lm_head=request.lm_head, group_size=group)),
    ]  # fmt: skip
    if graph is None:
        return items
    tables = 0 if "llm.weights" in stored else graph.tables_bytes
    angles = f"cosines and sines of {text.max_positions:,} positions"
    beside = "fp16 weights, as fp32" if request.weights == "fp16" else _BESIDE
    return [
        *items,
        PlanItem("llm.positions", tables, phases, angles, "exact", "fp32"),
        PlanItem("llm.packed", graph.beside_bytes, phases, beside, "bound", "fp32"),
    ]


def _tower_weights(subject: Subject, request: Request) -> list[PlanItem]:
    if subject.vision is None or subject.projector is None:
        return []
    seen, projector, dtype, stored = subject.vision, subject.projector, request.vision_dtype, subject.stored
    phases = ("encode",) if request.release_tower else PHASES
    items = [
        _item(stored, "vision.weights", dtype, phases, f"{seen.parameters:,} parameters",
              lambda: weights.vision_bytes(seen, dtype=dtype)),
        _item(stored, "projector.weights", dtype, phases, f"{projector.parameters:,} parameters",
              lambda: weights.projector_bytes(projector, dtype=dtype)),
    ]  # fmt: skip
    if request.target == "cpu":
        beside = tower_beside_bytes(seen, projector, dtype=dtype, stored_bytes=stored.get("vision.weights"))
        items.append(PlanItem("vision.packed", beside, phases, _BESIDE, "bound", "fp32"))
    return items


def _repacked(subject: Subject, graph: CpuGraph, tower: int, request: Request) -> PlanItem:
    """The largest matrix, held twice while it is packed. The decoder's is packed where the tower comes to lie behind it."""
    seen, projector = subject.vision, subject.projector
    own = tower_repacked_bytes(seen, projector) if seen is not None and projector is not None and tower else 0
    if request.release_tower:
        return PlanItem(
            "weights.repacked", graph.repacked_bytes, ("prefill",), "the decoder's largest matrix once more", "bound"
        )
    how = "the tower's largest matrix once more, or the decoder's beyond what the tower takes behind it"
    return PlanItem("weights.repacked", max(own, graph.repacked_bytes - tower), ("load",), how, "bound")


def _rows_read(table: PlanItem, text: TextSpec, positions: int) -> PlanItem:
    """Of a table of embeddings that is mapped, a CPU holds what a prompt's words read; another question's are other ones."""
    read = min(table.bytes, positions * max(MAPPED_BYTES, 2 * table.bytes // max(1, text.vocab)))
    how = f"a row of each of {positions:,} text tokens, {format_bytes(table.bytes)} in the file"
    return replace(table, bytes=read, phases=("prefill", "decode"), formula=how, basis="bound")


def _item(
    stored: Mapping[str, int], name: str, dtype: str, phases: tuple[str, ...], formula: str, count: Callable[[], int]
) -> PlanItem:
    """What the files say goes before the formula."""
    if name in stored:
        return PlanItem(name, stored[name], phases, "as stored in the files", "exact", dtype)
    return PlanItem(name, count(), phases, formula, "exact", dtype)


def _linear_formula(count: int, request: Request) -> str:
    if request.weights in ("fp16", "fp32"):
        return f"{count:,} linear weights, norms"
    bits = 4 if request.weights == "awq" else 8
    scale, norms = (32, "fp32") if request.target == "cpu" else (16, "fp16")
    return f"{count:,} linear weights at {bits + (bits + scale) / request.group_size:.3f} bits, norms {norms}"


def _vision(subject: Subject, request: Request, visual: Visual, apart: Place) -> list[PlanItem]:
    if subject.vision is None or subject.projector is None or not visual.views:
        return []
    elem, views = request.elem_bytes, min(visual.at_once, request.encode_views)
    if subject.vision.joint_views > 1:
        views = visual.at_once
    copies = 1 if request.target == "cpu" and not visual.packed else 2
    tower = vision.vision_activation_bytes(
        subject.vision, views=views, patches=visual.patches, elem_bytes=elem, fused=request.fused_vision,
        score_copies=copies,
    )  # fmt: skip
    projector = vision.projector_activation_bytes(subject.projector, patches=views * visual.patches, elem_bytes=elem)
    scores = vision.score_values(subject.vision, patches=visual.patches) * elem
    how = "fused attention" if request.fused_vision else f"scores {format_bytes(copies * scores)} each"
    frames = subject.vision.temporal_patch
    dtype = "fp32" if elem == 4 else "fp16"
    values = visual.at_once * visual.view_px * 3 * frames
    return [
        PlanItem("image.views", values, ("preprocess",), f"{visual.at_once} views as they are cut", "exact", "uint8", apart),
        PlanItem("image.pixels", 4 * values, ("preprocess", "encode"), f"{visual.at_once} views, normalised", "exact",
                 "fp32", apart),
        PlanItem("vision.activations", max(tower, projector), _kept(request, "encode", apart),
                 f"{views} views of {visual.patches} patches in one call, {how}", "bound", dtype),
        PlanItem("visual_embeddings", EMBEDDING_COPIES * visual.tokens * subject.text.hidden * elem * request.batch,
                 _WITH_TOKENS, f"{EMBEDDING_COPIES} copies of {visual.tokens} x {subject.text.hidden}", "exact", dtype),
    ]  # fmt: skip


def _decoder(subject: Subject, request: Request, visual: Visual, apart: Place) -> list[PlanItem]:
    text, elem, batch = subject.text, request.elem_bytes, request.batch
    bits, scaled = BITS[request.kv_cache], request.kv_cache in ("int8", "int4")
    cache = formulas.kv_cache_bytes(text, tokens=request.context, batch=batch, elem_bits=bits, scales=scaled)
    cross = formulas.cross_cache_bytes(text, tokens=visual.cross, batch=batch, elem_bits=bits, scales=scaled)
    whole = text.bidirectional_prefix or request.prefill_chunk == 0
    chunk = request.context if whole else min(request.context, request.prefill_chunk)
    dtype = "fp32" if elem == 4 else "fp16"
    # a CPU's cache is memory only once it is written to, in the first prefill
    lazy = request.target == "cpu" and not request.again
    held = ("prefill", "decode") if request.release_tower or lazy else _LATER
    own = text.layers - len(text.cross_attention_layers)
    read = "the whole prompt at once" if whole else f"chunks of {chunk} positions"
    prefill = formulas.prefill_activation_bytes(text, tokens=chunk, elem_bytes=elem, lean=request.lean)
    if not request.lean and (
        scores := formulas.prefix_score_bytes(text, tokens=chunk, positions=request.context, elem_bytes=elem)
    ):
        prefill, read = prefill + scores, f"{read}, scores {format_bytes(scores)}"
    return [
        PlanItem("kv_cache", cache, held,
                 f"2 x {own} layers x {text.kv_heads} heads x {text.head_dim} x {request.context} positions"
                 + (f" x {batch}" if batch > 1 else ""), "exact", request.kv_cache),
        PlanItem("kv_cache.cross", cross, ("prefill", "decode"), f"{visual.cross} visual tokens", "exact",
                 request.kv_cache),
        PlanItem("prefill.activations", prefill, _kept(request, "prefill", apart), read, "bound", dtype),
        PlanItem("logits", 4 * text.vocab * batch, ("prefill", "decode"), "the last position's", "exact", "fp32"),
        PlanItem("decode.buffers", formulas.decode_buffer_bytes(text, batch=batch, elem_bytes=elem), ("decode",),
                 "one position and sampling", "bound", dtype),
    ]  # fmt: skip
