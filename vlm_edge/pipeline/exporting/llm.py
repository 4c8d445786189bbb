"""A checkpoint's decoder -> a proven graph and an embedding table in a bundle. Needs the `build` extra."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx import decoder, decoder_parity
from vlm_edge.backends.onnx.decoder_divergence import first_divergence
from vlm_edge.backends.onnx.engine import OnnxEngine
from vlm_edge.backends.onnx.parity import limit_for, require
from vlm_edge.core.bundle import ArtifactRef, Bundle, Manifest, ParityResult
from vlm_edge.core.bundle_writer import Staged, present, publish
from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.contracts import Floats
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.core.specs import ModelSpec, TextSpec
from vlm_edge.errors import BadInput

COMPONENT = "llm"
TARGETS = ("cpu", "cuda")
DTYPES = ("fp32", "fp16")
STEPS = (
    "copy the decoder's weights",
    "build the decoder's graph",
    "compute the decoder's reference",
    "run the decoder and compare",
    "publish the decoder",
)
TEXT_SOURCE, VISION_SOURCE = "text", "vision"
"""Keys of Manifest.source: SHA-256 of a part's weights."""
PROMPT_TOKENS, DECODED_TOKENS = 40, 4
GRID = (4, 5)
"""Rows and columns of the stretch of the prompt that stands for an image."""
HEAD_DIM_UNIT = 8
"""What GroupQueryAttention's head size has to be a multiple of."""
EMBEDDING = "llm/embed.safetensors"
Step = Callable[[str], None]


@dataclass(frozen=True)
class DecoderJob:
    """What is to be exported, from where, and how a manifest for it begins.

    source: hashes that say which model it is.  manifest: from the bundle's present one, or None, to one of this model.
    configuration: puts the checkpoint's configuration files into a stage folder.  vision_hash: what the bundle would have
    recorded of this checkpoint's tower.  atol: the largest difference of a logit that is allowed, beside the dtype's limits.
    """

    checkpoint: Checkpoint
    spec: ModelSpec
    name: str
    source: Mapping[str, str]
    target: str
    dtype: str
    threads: int
    manifest: Callable[[Manifest | None], Manifest]
    configuration: Callable[[Path], list[Staged]]
    vision_hash: Callable[[], str]
    atol: float | None = None


@dataclass(frozen=True)
class ExportedDecoder:
    """What was added to the bundle."""

    bundle: Bundle
    artifacts: tuple[ArtifactRef, ...]
    parity: tuple[ParityResult, ...]


def check_decoder(dtype: str, target: str, spec: ModelSpec | None = None) -> None:
    """Raise BadInput or MissingDependency for a decoder that cannot be exported, before anything is read.

    spec: once the checkpoint is known.
    """
    if target not in TARGETS:
        raise BadInput(
            f"there is no decoder for {target}",
            remedy="use --target cpu or cuda, or --component vision,projector",
        )
    if dtype not in DTYPES:
        raise BadInput(
            f"export writes no {dtype} decoder",
            remedy="use vlm-edge quantize for a smaller one, or --dtype fp32 or fp16 with --component llm",
        )
    if target == "cuda" and dtype != "fp16":
        raise BadInput("ONNX Runtime's attention on CUDA is written for fp16", remedy="use --dtype fp16")
    decoder.require_builder()
    if spec is not None:
        check_text(spec.text, otherwise="--component vision,projector")


def check_text(text: TextSpec, *, otherwise: str) -> None:
    """Raise BadInput for a decoder that no graph can be made of; otherwise: the option that makes none."""
    if text.head_dim % HEAD_DIM_UNIT:
        raise BadInput(
            f"ONNX Runtime's attention has no heads of {text.head_dim} values",
            remedy=f"use a model whose head_dim is a multiple of {HEAD_DIM_UNIT}, or {otherwise}",
        )
    if text.architecture not in decoder.ARCHITECTURES:
        raise BadInput(
            f"{text.architecture} decoders cannot be exported: onnxruntime-genai's builder makes no right graph of them",
            remedy=f"use {otherwise}; decoders that work: {', '.join(decoder.ARCHITECTURES)}",
        )


def export_decoder(job: DecoderJob, out: Path, stage: Path, step: Step) -> ExportedDecoder:
    """Extract the text model, build its graph, compare it with transformers, and enter it into the bundle `out`.

    stage: a folder on the file system of `out`; for a time it holds the text model as stored beside the graph.
    Raises BadInput, MissingDependency, DamagedBundle; CheckFailed when the graph differs. `out` is then as it was.
    """
    from vlm_edge.models.text_reference import embedding_scale
    from vlm_edge.models.text_weights import extract_text_model, write_embedding

    step(STEPS[0])
    folder = f"llm/{job.target}"
    text_dir = stage / "text-model"
    digest = extract_text_model(job.checkpoint, text_dir)
    old, source = same_model(out, {**job.source, TEXT_SOURCE: digest}, job.name, VISION_SOURCE, job.vision_hash)
    table_dtype = write_embedding(job.checkpoint, stage / EMBEDDING)
    step(STEPS[1])
    decoder.build_decoder(text_dir, stage / folder, precision=job.dtype, text=job.spec.text)
    shutil.rmtree(text_dir)
    step(STEPS[2])
    embeds, positions = sample_inputs(job.spec.text, EmbeddingTable(stage / EMBEDDING), embedding_scale(job.checkpoint))
    references = _references(job, embeds, positions)
    decoder_parity.save(references, stage / folder / "references.npz")
    step(STEPS[3])
    parity = _gate(job, stage / folder / decoder.GRAPH, references)
    step(STEPS[4])
    files = [
        *job.configuration(stage),
        Staged(EMBEDDING, "llm.embedding", dtype=table_dtype),
        Staged(f"{folder}/{decoder.GRAPH}", "llm.graph", job.target, job.dtype),
        Staged(f"{folder}/{decoder.DATA}", "llm.graph.data", job.target, job.dtype),
        Staged(f"{folder}/references.npz", "llm.references", job.target, "fp32"),
    ]
    component = f"{COMPONENT}/{job.target}"
    manifest = job.manifest(old)
    manifest = replace(
        manifest,
        source={**manifest.source, **source},
        tools={**manifest.tools, "onnxruntime-genai": metadata.version("onnxruntime-genai")},
        artifacts=tuple(a for a in manifest.artifacts if not (_is_decoder(a) and a.target == job.target)),
        parity=(*(row for row in manifest.parity if row.component != component), *parity),
    )
    bundle = publish(out, stage, files, manifest, old=old)
    paths = {file.path for file in files}
    added = tuple(a for a in bundle.manifest.artifacts if _is_decoder(a) and a.path in paths)
    return ExportedDecoder(bundle, added, parity)


def same_model(
    out: Path, source: Mapping[str, str], name: str, other_part: str, other_hash: Callable[[], str]
) -> tuple[Manifest | None, dict[str, str]]:
    """The manifest in `out`, if any, and `source` with what it took to know that both are of one model; raises BadInput.

    source: hashes of a model, the weights of the part that is to be added among them.  other_part, other_hash: the key of the
    other part, and what tells its hash; that reads the part, and is asked only where `out` holds nothing else.
    """
    source = dict(source)
    old = present(out, source, name)
    parts = {TEXT_SOURCE, VISION_SOURCE}
    if old is not None and other_part in old.source and not parts & old.source.keys() & source.keys():
        # Names and shapes agree; only weights tell a fine-tune, and there are none yet that both sides know.
        source[other_part] = other_hash()
        old = present(out, source, name)
    return old, source


def sample_inputs(text: TextSpec, table: EmbeddingTable, scale: float) -> tuple[Floats, NDArray[np.int64] | None]:
    """Two sequences of embeddings [2, L, D] for a decoder, and their positions [2, 3, L] where it takes three-part ones.

    The first is text: rows of the table, multiplied by `scale`. In the second a stretch of noise of the rows' own size stands
    for an image, and its positions are a grid's, so that time, row and column differ. The same on every call.
    Values are rounded to fp16, in which they are stored and which an fp16 graph takes.
    """
    random = np.random.default_rng(0)
    length = PROMPT_TOKENS + DECODED_TOKENS
    rows = np.stack([table.rows(random.integers(0, text.vocab, length).tolist()) for _ in range(2)]) * np.float32(scale)
    first, count = 5, GRID[0] * GRID[1]
    noise = random.normal(size=(count, text.hidden)).astype(np.float32)
    rows[1, first : first + count] = noise * rows.std()
    embeds = rows.astype(np.float16).astype(np.float32)
    if not text.mrope_sections:
        return embeds, None
    plain = np.tile(np.arange(length), (3, 1))
    grid = plain.copy()
    grid[:, first : first + count] = first + np.stack(
        [np.zeros(count, np.int64), *(axis.ravel() for axis in np.indices(GRID))]
    )
    after = length - first - count
    grid[:, first + count :] = first + max(GRID) + np.arange(after)
    return embeds, np.stack([plain, grid])


def _references(
    job: DecoderJob, embeds: Floats, positions: NDArray[np.int64] | None
) -> decoder_parity.DecoderReferences:
    from vlm_edge.models.text_reference import reference_logits

    layers: list[Floats] = []
    logits = reference_logits(
        job.checkpoint, embeds, prompt=PROMPT_TOKENS, positions=positions,
        bidirectional_prefix=job.spec.text.bidirectional_prefix,
        on_layer=lambda _, hidden: layers.append(decoder_parity.layer_sample(hidden[-1, :PROMPT_TOKENS])),
    )  # fmt: skip
    return decoder_parity.keep(embeds, PROMPT_TOKENS, logits, positions, layers)


def _gate(job: DecoderJob, graph: Path, references: decoder_parity.DecoderReferences) -> tuple[ParityResult, ...]:
    """On the CPU, whatever the target: the machine that exports need not have the other.

    Raises CheckFailed that names the first layer that differs.
    """
    context = PROMPT_TOKENS + DECODED_TOKENS
    engine = OnnxEngine(graph, job.spec.text, target="cpu", threads=job.threads, context=context, mapped=True)
    parity = decoder_parity.compare(engine, references, job.dtype, limit=limit_for(job.dtype, job.atol))
    del engine  # before another session reads the same weights
    where = None if parity.ok else first_divergence(graph, job.spec.text, references, limit=parity.limit.relative_error)
    # fp16 fails where a model's activations leave its range, which for some decoders they do.
    require(parity, where, remedy="export with --dtype fp32" if job.dtype == "fp16" else "report the model")
    return tuple(replace(row, component=f"{COMPONENT}/{job.target}") for row in parity.results())


def _is_decoder(artifact: ArtifactRef) -> bool:
    return artifact.role.startswith("llm.")
