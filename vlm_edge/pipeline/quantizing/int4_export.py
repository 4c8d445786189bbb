"""Finished layers of `quantize` -> an int4 decoder graph that is proven against them. Needs the `build` extra."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from vlm_edge.backends.onnx import decoder, decoder_parity, int4_decoder, kv_cache
from vlm_edge.backends.onnx.decoder_divergence import first_divergence
from vlm_edge.backends.onnx.engine import OnnxEngine
from vlm_edge.backends.onnx.int4_decoder import EXACT, INT8_ACTIVATIONS, Int4Settings, round_head
from vlm_edge.backends.onnx.parity import Parity, measure, require
from vlm_edge.core import host
from vlm_edge.core.bundle import ParityResult
from vlm_edge.core.bundle_writer import Staged
from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.contracts import Floats
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.core.periodic import every
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import CheckFailed
from vlm_edge.memory.cpu_graph import stored_graph
from vlm_edge.memory.quantize_plan import COMPARED_BYTES
from vlm_edge.models.decoder_layers import StreamedDecoder
from vlm_edge.models.text_template import write_template
from vlm_edge.pipeline.exporting.llm import COMPONENT, EMBEDDING, PROMPT_TOKENS, check_text, sample_inputs
from vlm_edge.quant.memory_limit import INTERVAL_S, MemoryLimit, release, room_for_mapped
from vlm_edge.quant.packing import SUFFIXES, from_gemm
from vlm_edge.quant.qparams import Quantized
from vlm_edge.quant.sequences import Placement

BUILDERS = {"cpu": "fp32", "cuda": "fp16"}
"""The float type that each target's graph computes in."""
GAP = 1e-3
"""Two logits that are nearer to each other may change places with the order of additions."""
KV_SEQUENCES = 8
"""Calibration sequences that the KV cache's scales are found on."""
SCALES = "kv_scales.safetensors"


@dataclass(frozen=True)
class Int4Job:
    """What is written, and from what.

    layers: finished layers' files.  threads: of ONNX Runtime.  kv_cache: `auto`, the graph's float type, or `int8` or `int4`,
    whose scales are found on `sequences`.
    """

    checkpoint: Checkpoint
    decoder: StreamedDecoder
    text: TextSpec
    layers: Sequence[Path]
    target: str
    settings: Int4Settings
    limit: MemoryLimit
    threads: int
    kv_cache: str = "auto"
    sequences: Iterable[tuple[torch.Tensor, Placement]] = ()


@dataclass(frozen=True)
class Int4Decoder:
    """What was written.

    files: in the stage folder.  report: what the comparisons found.
    """

    files: tuple[Staged, ...]
    parity: tuple[ParityResult, ...]
    report: Mapping[str, Any]


def check_int4(text: TextSpec) -> None:
    """Raise BadInput or MissingDependency for a decoder that no graph can be made of, before anything is read."""
    decoder.require_builder()
    check_text(text, otherwise="--target none")


def export_int4(job: Int4Job, stage: Path, on_note: Any) -> Int4Decoder:
    """Write llm/<target> into the stage folder, whose embedding table is there already, and compare it with the rounded layers.

    The graph is compared twice: its products in the graph's float type, where nothing but the order of additions differs from
    torch, and then as it will run, its activations rounded to int8 block by block. Where that loses too much, the graph is left
    to multiply floats.  Raises CheckFailed when the graph is another function than the layers.
    """
    folder = stage / COMPONENT / job.target
    on_note("draw the decoder's graph")
    builder_bytes = _template(job, stage)
    on_note("pack the decoder's weights")
    int4_decoder.write_decoder(stage / "template-graph", job.text, PackedLayers(job), folder, job.settings)
    shutil.rmtree(stage / "template-graph")
    release()
    on_note("compute the decoder's reference")
    embeds, positions = sample_inputs(job.text, EmbeddingTable(stage / EMBEDDING), job.decoder.embedding_scale)
    samples: list[Floats] = []
    logits = reference_logits(job, embeds, positions, samples.append)
    release()
    references = decoder_parity.keep(embeds, PROMPT_TOKENS, logits, positions, samples)
    decoder_parity.save(references, folder / "references.npz")
    on_note("run the decoder and compare")
    graph = folder / decoder.GRAPH
    exact = _rows(job, graph, embeds, positions, mapped=True)
    _require_exact(job, exact, logits, graph, references)
    release()
    parity, report = _as_it_runs(job, graph, embeds, positions, logits, exact)
    if report["as_run"] is not None:
        report["loaded_bytes"] = _loaded_bytes(job, graph)
    component = f"{COMPONENT}/{job.target}"
    scales: tuple[Staged, ...] = ()
    if job.kv_cache != "auto":
        release()
        on_note("find the KV cache's scales")
        parity, cache = _quantize_cache(job, graph, embeds, positions, logits)
        report |= {"kv_cache": cache}
        scales = (Staged(f"{component}/{SCALES}", "llm.kv_scales", job.target, job.kv_cache),)
    files = (
        Staged(f"{component}/{decoder.GRAPH}", "llm.graph", job.target, "int4"),
        Staged(f"{component}/{decoder.DATA}", "llm.graph.data", job.target, "int4"),
        Staged(f"{component}/references.npz", "llm.references", job.target, "fp32"),
        *scales,
    )
    rows = tuple(replace(row, component=component) for row in parity.results())
    found = {"exact": _summary(job, exact, logits), **report, "builder_peak_bytes": builder_bytes}
    return Int4Decoder(files, rows, {"target": job.target, "lm_head": job.settings.head, **found})


def _template(job: Int4Job, stage: Path) -> int:
    """Peak memory of the builder, a process of its own, as far as looking at it now and then tells.

    What Linux records of a child that has ended (ru_maxrss) is no less than its parent held when it was started.
    """
    peak = 0

    def look() -> None:
        nonlocal peak
        peak = max(peak, host.children_rss_bytes())

    write_template(job.checkpoint, stage / "template")
    with every(INTERVAL_S, look, name="builder's memory"):
        decoder.build_decoder(stage / "template", stage / "template-graph", precision=BUILDERS[job.target])
    shutil.rmtree(stage / "template")
    return peak


class PackedLayers:
    """The weights of a job's finished layers, for the graph and, multiplied out, for the reference."""

    def __init__(self, job: Int4Job) -> None:
        self._job = job

    def layer(self, index: int) -> tuple[dict[str, Quantized], dict[str, torch.Tensor]]:
        """Linear layers by module, and every other parameter by name."""
        tensors = load_file(self._job.layers[index])
        modules = sorted(name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight"))
        packed = {name: {part: tensors.pop(f"{name}.{part}") for part in SUFFIXES} for name in modules}
        return {name: from_gemm(parts) for name, parts in packed.items()}, tensors

    def multiplied_out(self, index: int) -> dict[str, torch.Tensor]:
        """Every parameter of a layer, float32."""
        quantized, others = self.layer(index)
        weights = {f"{name}.weight": quantized.pop(name).dequantized() for name in [*quantized]}
        return weights | {name: tensor.float() for name, tensor in others.items()}

    def norm(self) -> torch.Tensor:
        """The final norm's weight [D]."""
        return self._job.decoder.final_norm.cpu()

    def head(self) -> Iterator[torch.Tensor]:
        """The output table [V, D] in pieces."""
        return self._job.decoder.head()


def reference_logits(
    job: Int4Job, embeds: Floats, positions: NDArray[np.int64] | None, on_layer: Callable[[Floats], None]
) -> Floats:
    """Logits fp32 [N, L - PROMPT_TOKENS + 1, V] of transformers' own layers with the rounded weights multiplied out.

    embeds: [N, L, D].  on_layer: is given a sample of the last sequence's prompt behind each layer.
    Memory: one layer in fp32 and the sequences' states.
    """
    weights = PackedLayers(job)
    states = [torch.from_numpy(rows) for rows in embeds]
    prefix = PROMPT_TOKENS if job.text.bidirectional_prefix else 0
    places = [
        Placement(len(rows), None if positions is None else torch.from_numpy(positions[i]), prefix)
        for i, rows in enumerate(states)
    ]
    with torch.no_grad():
        for index in range(job.text.layers):
            job.decoder.forget()
            layer = job.decoder.layer_of(index, weights.multiplied_out(index))
            for i, place in enumerate(places):
                output = layer(states[i][None].to(job.decoder.device), **job.decoder.arguments(index, place))
                states[i] = (output[0] if isinstance(output, tuple) else output)[0].cpu()
            on_layer(decoder_parity.layer_sample(states[-1][:PROMPT_TOKENS].numpy()))
            job.limit.check()
        job.decoder.forget()
        head = (round_head(rows, job.settings) for rows in weights.head())
        last = torch.cat([rows[PROMPT_TOKENS - 1 :] for rows in states])
        logits = job.decoder.logits(last, head).cpu()
    found: Floats = logits.view(len(states), -1, logits.shape[-1]).numpy()
    return found


def _rows(
    job: Int4Job, graph: Path, embeds: Floats, positions: NDArray[np.int64] | None, *, mapped: bool
) -> list[Floats]:
    """Logits [V] of the CPU for every row of the reference; mapped: from weights in the file, multiplied in floats."""
    found = []
    with room_for_mapped(_data_bytes(graph) if mapped else 0):
        engine = OnnxEngine(
            graph, job.text, target="cpu", threads=job.threads, context=embeds.shape[1], mapped=mapped
        )  # fmt: skip
        for i, rows in enumerate(embeds):
            found += decoder_parity.decode_rows(
                engine, rows, PROMPT_TOKENS, None if positions is None else positions[i]
            )
            job.limit.check()
        del engine
    return found


def _parity(job: Int4Job, rows: Sequence[Floats], logits: Floats, dtype: str) -> Parity:
    expected = [row for sequence in logits for row in sequence]
    return measure(f"{COMPONENT}/{job.target}", dtype, rows, expected)


def _require_exact(
    job: Int4Job, rows: Sequence[Floats], logits: Floats, graph: Path, references: decoder_parity.DecoderReferences
) -> None:
    """In floats the graph is the rounded model up to the order of additions, and names the same likeliest tokens.

    Raises CheckFailed that names the first layer that differs.
    """
    parity = _parity(job, rows, logits, BUILDERS[job.target])
    where = None
    if not parity.ok:
        with room_for_mapped(_data_bytes(graph)):
            where = first_divergence(graph, job.text, references, limit=parity.limit.relative_error)
    require(
        replace(parity, dtype="int4"), where, remedy="report the model; --target none writes the AWQ checkpoint alone"
    )
    if BUILDERS[job.target] != "fp32":
        return
    if wrong := _other_tokens(rows, logits):
        raise CheckFailed(
            f"the int4 decoder's likeliest token differs from torch's at {wrong} of {len(rows)} positions",
            remedy="report the model; --target none writes the AWQ checkpoint alone",
        )


def _other_tokens(rows: Sequence[Floats], logits: Floats) -> int:
    """Positions with another likeliest token than the reference's, where that one is clear."""
    wrong = 0
    for row, expected in zip(rows, logits.reshape(-1, logits.shape[-1]), strict=True):
        first, second = np.sort(expected)[[-1, -2]]
        wrong += int(first - second >= GAP and row.argmax() != expected.argmax())
    return wrong


def _as_it_runs(
    job: Int4Job,
    graph: Path,
    embeds: Floats,
    positions: NDArray[np.int64] | None,
    logits: Floats,
    exact: Sequence[Floats],
) -> tuple[Parity, dict[str, Any]]:
    """Compare the graph as a run loads it, and choose what its products are computed in.

    exact: the rows that it gave in floats, which are all there is where it cannot be loaded.
    """
    if not _has_room(job, graph):
        return _parity(job, exact, logits, "int4"), {
            "activations": "int8" if job.settings.accuracy_level == INT8_ACTIVATIONS else "float",
            "as_run": None,
            "note": "--max-memory has no room for the loaded decoder: its int8 activations were not compared",
        }
    rows = _rows(job, graph, embeds, positions, mapped=False)
    parity, summary = _parity(job, rows, logits, "int4"), _summary(job, rows, logits)
    if parity.ok or job.settings.accuracy_level == EXACT:
        require(parity, remedy="report the model; --target none writes the AWQ checkpoint alone")
        level = "int8" if job.settings.accuracy_level == INT8_ACTIVATIONS else "float"
        return parity, {"activations": level, "as_run": summary}
    int4_decoder.set_accuracy(graph, EXACT)
    rows = _rows(job, graph, embeds, positions, mapped=False)
    parity = _parity(job, rows, logits, "int4")
    require(parity, remedy="report the model; --target none writes the AWQ checkpoint alone")
    return parity, {"activations": "float", "as_run": _summary(job, rows, logits), "int8_activations": summary}


def _quantize_cache(
    job: Int4Job, graph: Path, embeds: Floats, positions: NDArray[np.int64] | None, logits: Floats
) -> tuple[Parity, dict[str, Any]]:
    """Look at the cache of the calibration sequences, give the graph one of few bits, and compare again."""
    ranges = kv_cache.Ranges(job.text)
    sequences = list(itertools.islice(job.sequences, KV_SEQUENCES))
    # What `verify` asks later has to lie within the ranges, too.
    sequences += [
        (torch.from_numpy(rows), Placement(len(rows), None if positions is None else torch.from_numpy(positions[i])))
        for i, rows in enumerate(embeds)
    ]
    longest = max(len(rows) for rows, _ in sequences)
    with room_for_mapped(_data_bytes(graph)):
        engine = OnnxEngine(graph, job.text, target="cpu", threads=job.threads, context=longest, mapped=True)
        for rows, place in sequences:
            engine.rewind(0)
            engine.forward(rows.numpy(), None if place.positions is None else place.positions.numpy())
            ranges.add(engine.cached())
            job.limit.check()
        del engine
    release()
    scales = ranges.scales(kv_cache.BITS[job.kv_cache])
    kv_cache.save_scales(scales, graph.parent / SCALES)
    kv_cache.quantize_cache(graph, job.text, scales, job.kv_cache)
    rows = _rows(job, graph, embeds, positions, mapped=not _has_room(job, graph))
    parity = _parity(job, rows, logits, kv_cache.limit_name(job.kv_cache))
    better = "--kv-cache-dtype int8, or auto" if job.kv_cache == "int4" else "--kv-cache-dtype auto"
    require(parity, remedy=f"a cache of {job.kv_cache} loses too much in this decoder: use {better}")
    found = {"dtype": job.kv_cache, "calibration_sequences": len(sequences), "calibration_positions": ranges.positions}
    return parity, {**found, **_summary(job, rows, logits)}


def _data_bytes(graph: Path) -> int:
    """Size of a decoder's weights."""
    return (graph.parent / decoder.DATA).stat().st_size


def _has_room(job: Int4Job, graph: Path) -> bool:
    """Whether a limit lets the decoder be loaded as a run loads it."""
    return job.limit.limit_bytes is None or host.rss_bytes() + _loaded_bytes(job, graph) <= job.limit.limit_bytes


def _loaded_bytes(job: Int4Job, graph: Path) -> int:
    """What loading and comparing the decoder as a run loads it will take. A bound."""
    return stored_graph(job.text, _data_bytes(graph)).loaded_bytes + COMPARED_BYTES


def _summary(job: Int4Job, rows: Sequence[Floats], logits: Floats) -> dict[str, float | int]:
    """How far logits are from the reference's: KL in nats from the reference, and positions with another likeliest token."""
    parity = _parity(job, rows, logits, "int4")
    expected = torch.from_numpy(logits.reshape(-1, logits.shape[-1])).double().log_softmax(-1)
    measured = torch.from_numpy(np.stack(rows)).double().log_softmax(-1)
    kl = (expected.exp() * (expected - measured)).sum(-1).mean()
    return {
        "cosine": parity.cosine,
        "relative_error": parity.relative_error,
        "max_error": parity.max_error,
        "kl": float(kl),
        "positions": len(rows),
        "other_tokens": _other_tokens(rows, logits),
    }
