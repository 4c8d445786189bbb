"""A checkpoint's language model -> AutoAWQ's 4-bit format, one decoder layer at a time. Needs the `build` extra."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge import __version__
from vlm_edge.core.bundle import ArtifactRef, Bundle, ParityResult, atomic_write, reference
from vlm_edge.core.bundle_writer import Staged, locked, present, publish
from vlm_edge.core.calibration import SAMPLES, SEARCH_TOKENS, SEQLEN
from vlm_edge.core.checkpoint import Checkpoint, open_checkpoint
from vlm_edge.core.discover import family_of
from vlm_edge.core.recipe import KV_CACHES, LM_HEADS
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.pipeline import html_page
from vlm_edge.pipeline.exporting.export import copied, manifest_of, vision_hash
from vlm_edge.pipeline.exporting.llm import TEXT_SOURCE, VISION_SOURCE, same_model
from vlm_edge.pipeline.exporting.source import Source, located, of_checkpoint, source_hashes
from vlm_edge.pipeline.exporting.tools import require_build_tools
from vlm_edge.pipeline.quantizing.page import page
from vlm_edge.units import format_pair

METHODS = ("awq", "rtn")
TARGETS = ("none", "cpu", "cuda")
BITS = (4, 3, 2)
GROUP_SIZES = (128, 64, 32)
REPORT, PAGE = "reports/quantize.json", "reports/quantize.html"
AWQ = "llm/awq"
WORK = "llm/.quantize"
_NEEDED = ("torch", "transformers", "safetensors")
_NEEDED_FOR_GRAPHS = ("onnx", "onnxruntime-genai")


@dataclass(frozen=True)
class QuantizeOptions:
    """What is asked for.

    calib: JSON Lines file or folder; None: the set that ships.  samples: how many of it, the held-out quarter among them.
    seqlen: longest sequence in tokens; None: SEQLEN, or the model's context if that is less.  max_memory_bytes: None: no limit.
    search_tokens: on how many the scale search judges.  revision, offline, bars: as hub.fetch has them.
    """

    target: str = "none"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = False
    calib: Path | None = None
    samples: int = SAMPLES
    seqlen: int | None = None
    max_memory_bytes: int | None = None
    method: str = "awq"
    lm_head: str = "fp16"
    kv_cache_dtype: str = "auto"
    search_tokens: int = SEARCH_TOKENS
    device: str = "auto"
    revision: str = ""
    offline: bool = False
    bars: bool = True


@dataclass(frozen=True)
class Progress:
    """After a layer.  loss_ratio: of its error to plain rounding's, None without calibration.  left_s: what the rest may take."""

    layer: int
    layers: int
    loss_ratio: float | None
    left_s: float
    rss_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Quantized:
    """What was written.  bundle: None for a plain language model, which makes no bundle."""

    out: Path
    bundle: Bundle | None
    artifacts: tuple[ArtifactRef, ...]
    report: Mapping[str, Any] = field(default_factory=dict)


OnProgress = Callable[[Progress], None]
OnNote = Callable[[str], None]


def quantize_model(
    model: str | os.PathLike[str], out: Path, options: QuantizeOptions | None = None, *,
    on_progress: OnProgress = lambda _: None, on_note: OnNote = lambda _: None, sequences: Any = None, command: str = "",
) -> Quantized:  # fmt: skip
    """Quantize MODEL's decoder and enter it into the bundle OUT; a plain language model is written to OUT without a manifest.

    model: a checkpoint folder, or `organisation/name` on the hub.  command: what was typed, for the report.
    A run that was stopped goes on behind its last finished layer when model, options and data are the same.
    sequences: CalibrationSequences in place of options.calib, for benchmarks; such a run always starts anew.
    Raises BadInput, MissingDependency, DamagedBundle; CheckFailed when AWQ is further from the fp32 model than plain rounding on
    held-out sequences. OUT is then as it was, but for finished layers.
    """
    options = options or QuantizeOptions()
    check_options(options)
    require_build_tools("quantize", _NEEDED)
    checkpoint, described, origin = _opened(model, options, on_note)
    if out.resolve() == checkpoint.root.resolve():
        raise BadInput(f"{out} is the checkpoint itself", remedy="name another folder")
    name = origin.get("model", "").partition("/")[2] or checkpoint.root.resolve().name
    present(out, source_hashes(checkpoint), name)
    _refuse_another(out, checkpoint, name)
    from vlm_edge.pipeline.quantizing.run import Run

    with locked(out) as stage:
        run = Run(checkpoint, described, out, options, on_progress, on_note, sequences)
        source = _weighed(described, out, on_note) if described else {}
        finished = run.finish(stage)
        report = {**finished.report, "model": name, "origin": origin, "command": command}
        return _publish(replace(finished, report=report), described, source, out, stage)


def _weighed(described: Source, out: Path, on_note: OnNote) -> dict[str, str]:
    """Hashes that say which model it is, its decoder's weights among them; raises BadInput when OUT holds another one."""
    from vlm_edge.models.text_weights import text_digest

    on_note("hash the decoder's weights")
    source = {**described.hashes, TEXT_SOURCE: text_digest(described.checkpoint)}
    return same_model(out, source, described.name, VISION_SOURCE, partial(vision_hash, described))[1]


def _opened(
    model: str | os.PathLike[str], options: QuantizeOptions, on_note: OnNote
) -> tuple[Checkpoint, Source | None, dict[str, str]]:
    """The checkpoint, what it is as a vision-language model (None for a plain language model), and its id and commit."""
    from vlm_edge.quant.mapping import ARCHITECTURES

    def is_plain(config: Mapping[str, Any]) -> bool:
        return config.get("model_type") in ARCHITECTURES

    def accept(config: Mapping[str, Any]) -> None:
        if config.get("quantization_config"):
            raise BadInput(
                f"checkpoint {model} is already quantized", remedy="give the original checkpoint in fp32, fp16 or bf16"
            )
        if not is_plain(config):
            family_of(config)

    root, origin = located(
        model, revision=options.revision, offline=options.offline, on_step=on_note, bars=options.bars, accept=accept
    )
    checkpoint = open_checkpoint(root)
    accept(checkpoint.config)
    return checkpoint, None if is_plain(checkpoint.config) else of_checkpoint(checkpoint, origin), origin


def check_options(options: QuantizeOptions) -> None:
    """Raise BadInput for what no model could be quantized with."""
    for flag, value, known in (
        ("--target", options.target, TARGETS), ("--method", options.method, METHODS), ("--bits", options.bits, BITS),
        ("--group-size", options.group_size, GROUP_SIZES), ("--lm-head", options.lm_head, LM_HEADS),
        ("--kv-cache-dtype", options.kv_cache_dtype, KV_CACHES),
    ):  # fmt: skip
        if value not in known:
            raise BadInput(f"{flag} {value} is not supported", remedy=f"use one of {', '.join(map(str, known))}")
    for flag, value, default in (
        ("--lm-head", options.lm_head, "fp16"),
        ("--kv-cache-dtype", options.kv_cache_dtype, "auto"),
    ):
        if options.target == "none" and value != default:
            raise BadInput(
                f"{flag} {value} concerns the ONNX decoder, and --target none writes none", remedy=f"leave {flag} out"
            )
    for flag, number, least in (
        ("--samples", options.samples, 2), ("--seqlen", options.seqlen or SEQLEN, 8),
        ("--search-tokens", options.search_tokens, 1),
    ):  # fmt: skip
        if number < least:
            raise BadInput(f"{flag} {number} is too small", remedy=f"use {least} or more")


def _refuse_another(out: Path, checkpoint: Checkpoint, name: str) -> None:
    """A plain language model leaves no manifest, so its report says which one it was."""
    try:
        report = json.loads((out / REPORT).read_text("utf-8"))
        held = report["source"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if held != source_hashes(checkpoint):
        raise BadInput(
            f"{out} holds another model, {report.get('model')}; {name} cannot be added to it",
            remedy="name another folder, or an empty one",
        )


def calibration_path(options: QuantizeOptions) -> Path:
    """The file or folder that is read."""
    return options.calib or resource_dir("calibration") / "quantize"


def seqlen_of(options: QuantizeOptions, context: int) -> int:
    """Tokens of the longest sequence; raises BadInput for more than the model's context."""
    if options.seqlen is None:
        return min(SEQLEN, context)
    if options.seqlen > context:
        raise BadInput(
            f"--seqlen {options.seqlen} is longer than the model's context of {context} tokens",
            remedy=f"use {context} or less",
        )
    return options.seqlen


def skipped_parts(described: Source | None) -> Sequence[str]:
    """Modules of a vision-language model that are not its decoder."""
    return described.components.PARTS if described else ()


@dataclass(frozen=True)
class Finished:
    """Files in the stage folder, by their place in OUT, with their roles, and the report.

    parity: of the ONNX decoder, if one was written.
    """

    files: Sequence[Staged]
    report: Mapping[str, Any]
    clean: Callable[[], None]
    parity: Sequence[ParityResult] = ()


def _publish(
    finished: Finished, described: Source | None, source: Mapping[str, str], out: Path, stage: Path
) -> Quantized:
    with atomic_write(stage / REPORT) as stream:
        stream.write(json.dumps(finished.report, indent=1).encode() + b"\n")
    html_page.write(page(finished.report), stage / PAGE)
    files = [*finished.files, Staged(REPORT, "report.quantize"), Staged(PAGE, "report.quantize.html")]
    if described is None:
        artifacts = tuple(reference(stage, file.path, role=file.role, dtype=file.dtype) for file in files)
        for file in files:
            (out / file.path).parent.mkdir(parents=True, exist_ok=True)
            (stage / file.path).replace(out / file.path)
        finished.clean()
        return Quantized(out, None, artifacts, finished.report)
    old = present(out, source, described.name)
    manifest = manifest_of(described, old)
    targets = {file.target for file in files if file.role == "llm.graph"}
    components = {row.component for row in finished.parity}
    manifest = replace(
        manifest,
        source={**manifest.source, **described.origin, **source},
        tools={**manifest.tools, **finished.report["versions"]},
        artifacts=tuple(a for a in manifest.artifacts if not _is_replaced(a, targets)),
        parity=(*(row for row in manifest.parity if row.component not in components), *finished.parity),
    )
    bundle = publish(out, stage, [*copied(described.checkpoint, stage), *files], manifest, old=old)
    finished.clean()
    paths = {file.path for file in files}
    return Quantized(out, bundle, tuple(a for a in bundle.manifest.artifacts if a.path in paths), finished.report)


def _is_replaced(artifact: ArtifactRef, targets: Container[str]) -> bool:
    """Whether an artifact is an AWQ checkpoint, or a decoder for one of the targets."""
    role = artifact.role
    of_graph = role.startswith(("llm.graph", "llm.references", "llm.kv_scales"))
    return role.startswith("llm.awq") or (of_graph and artifact.target in targets)


def versions(target: str = "none") -> dict[str, str]:
    """Of everything that had a part in the result."""
    needed = _NEEDED if target == "none" else (*_NEEDED, *_NEEDED_FOR_GRAPHS)
    return {"vlm-edge": __version__} | {name: metadata.version(name) for name in needed}


def gate(kl: float, plain_kl: float, method: str) -> None:
    """Raise CheckFailed when the searched weights are further from the fp32 model than plainly rounded ones."""
    if method == "awq" and not kl <= plain_kl:  # so that NaN fails
        raise CheckFailed(
            f"AWQ is further from the fp32 model than plain rounding: held-out KL {kl:.3g} against {plain_kl:.3g} nats",
            remedy="calibrate on more or other samples, or use --method rtn",
        )


def memory_refusal(limit_bytes: int, least_bytes: int) -> BadInput:
    """--max-memory cannot work."""
    mib = -(-least_bytes // (1 << 20))
    limit, least = format_pair(limit_bytes, least_bytes)
    return BadInput(
        f"--max-memory {limit} is too small: {least} are needed",
        remedy=f"use --max-memory {mib}MiB or more, a smaller --seqlen, or --method rtn",
    )
