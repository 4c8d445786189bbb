"""A checkpoint's parts -> proven graphs in a bundle: tower and projector here, the decoder in llm.py. Needs `build`."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.backends.onnx import references
from vlm_edge.backends.onnx.export import DTYPES, OPSET, TARGETS
from vlm_edge.core import host
from vlm_edge.core.bundle import MANIFEST, ArtifactRef, Bundle, Limits, Manifest, ParityResult, RunDefaults, open_bundle
from vlm_edge.core.bundle_writer import CONFIGURATION, Staged, checked, locked, present, publish
from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.exporting import engines, llm, source
from vlm_edge.pipeline.exporting.example_inputs import tower_inputs
from vlm_edge.pipeline.exporting.source import Source
from vlm_edge.pipeline.exporting.tools import require_build_tools, tool_versions

COMPONENTS = ("vision", "projector")
"""Those that become one graph, and what is exported when nothing is said."""
ALL_COMPONENTS = (*COMPONENTS, llm.COMPONENT)
BACKENDS = ("onnx", "tensorrt")
OPSETS = range(18, 24)
STEPS = (
    "prepare the calibration images",
    "load the weights",
    "trace",
    "write and compare",
    "publish",
)
MAX_IMAGES = 8
"""Images in one question of a new bundle; how many fit depends on their tokens, which are counted for each question."""
NEWLINE = "vision/newline.safetensors"
CONTEXT_TOKENS = 4096
"""The context that a new bundle allows, where its decoder has as many positions: a KV cache for more is seldom wanted."""
Step = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What is asked for.

    components: parts of the model.  opset: of the graph.  threads: of the comparison; None: all cores.  atol: the largest
    difference of one value that is allowed, beside the limits of the dtype.  revision, offline, bars: as hub.fetch has them.
    backend: what runs the graph; `tensorrt` (target tensorrt) makes this machine's engine as well.  emit_script: write the
    engine's build as a script for another machine instead.
    """

    components: tuple[str, ...] = COMPONENTS
    target: str = "cpu"
    dtype: str = "fp32"
    opset: int = OPSET
    threads: int | None = None
    atol: float | None = None
    revision: str = ""
    offline: bool = False
    bars: bool = True
    backend: str = "onnx"
    emit_script: bool = False


@dataclass(frozen=True)
class Exported:
    """What was added to the bundle.

    scheme, why: int8 only, how weights were rounded and why so.
    """

    bundle: Bundle
    options: ExportOptions
    artifacts: tuple[ArtifactRef, ...]
    parity: tuple[ParityResult, ...]
    scheme: str = ""
    why: str = ""


def export_model(
    model: str | os.PathLike[str], out: Path, options: ExportOptions | None = None, *, on_step: Step | None = None
) -> Exported:
    """Export MODEL's tower and projector as one graph, its decoder as another; compare each with torch and enter it into OUT.

    model: a checkpoint folder, or `organisation/name` on the hub.  out: a new folder, or a bundle of the same model, whose graph
    for the target is replaced; for an engine alone both name the bundle, whose graph is then taken as it is.
    on_step: called with each of STEPS, and of llm.STEPS, as it begins.
    Peak memory: the tower and projector in fp32 and one image's activations; with the decoder, what its builder holds.
    Raises BadInput, MissingDependency, DamagedBundle; CheckFailed when a graph differs from torch. OUT is then as it was; when a
    decoder fails that was to come with its tower, the tower stays entered, and the command goes on from there with the decoder.
    """
    options, step = options or ExportOptions(), on_step or (lambda _: None)
    _check_options(options)
    with_engine = options.emit_script or options.backend == engines.TARGET
    if options.backend == engines.TARGET and not options.emit_script:
        engines.check_machine()
    if with_engine and (out / MANIFEST).is_file() and out.resolve() == Path(model).resolve():
        return _with_engine(Exported(open_bundle(out), options, (), ()), step)
    require_build_tools("export")
    described = source.describe(
        model, revision=options.revision, offline=options.offline, on_step=step, bars=options.bars
    )
    if with_engine:
        engines.check_family(described)
    if out.resolve() == described.checkpoint.root.resolve():
        raise BadInput(f"{out} is the checkpoint itself", remedy="name another folder for the bundle")
    present(out, described.hashes, described.name)
    manifest_of(described, None)
    with_decoder = llm.COMPONENT in options.components
    if with_decoder:
        llm.check_decoder(options.dtype, options.target, described.spec)
    with locked(out) as stage:
        seen = _export(described, out, stage, options, step) if {*COMPONENTS} & {*options.components} else None
        done = _export_decoder(described, out, stage, options, step, seen) if with_decoder or seen is None else seen
    return _with_engine(done, step) if with_engine else done


def _with_engine(done: Exported, step: Step) -> Exported:
    out, options = done.bundle.root, done.options
    added = engines.add_script(out) if options.emit_script else engines.add_engine(out, atol=options.atol, step=step)
    return replace(
        done, bundle=added.bundle, artifacts=(*done.artifacts, *added.artifacts), parity=(*done.parity, *added.parity)
    )


def _check_options(options: ExportOptions) -> None:
    unknown = [name for name in options.components if name not in ALL_COMPONENTS]
    if unknown or not options.components:
        raise BadInput(
            f"--component {(*unknown, '')[0]} cannot be exported", remedy=f"use --component {','.join(ALL_COMPONENTS)}"
        )
    if {*options.components} & {*COMPONENTS} not in ({*COMPONENTS}, set()):
        raise BadInput(
            "vision tower and projector are exported as one graph",
            remedy=f"use --component {','.join(COMPONENTS)}",
        )
    if llm.COMPONENT in options.components:
        llm.check_decoder(options.dtype, options.target)
    if options.target not in TARGETS or options.dtype not in DTYPES:
        raise BadInput(
            f"there is no export to {options.dtype} for {options.target}",
            remedy=f"choose --dtype {'|'.join(DTYPES)} and --target {'|'.join(TARGETS)}",
        )
    if options.dtype == "int8" and options.target != "cpu":
        raise BadInput(f"8-bit weights are for the CPU, not for {options.target}", remedy="use --dtype fp16 there")
    if options.backend not in BACKENDS:
        raise BadInput(f"there is no backend {options.backend!r}", remedy=f"use --backend {'|'.join(BACKENDS)}")
    if options.target != engines.TARGET and (options.emit_script or options.backend == engines.TARGET):
        raise BadInput(f"TensorRT engines are not built for {options.target}", remedy=f"use --target {engines.TARGET}")
    if options.opset not in OPSETS:
        raise BadInput(
            f"--opset {options.opset} is not supported",
            remedy=f"use {OPSETS[0]} to {OPSETS[-1]}; {OPSET} is tested most",
        )
    if options.atol is not None and not 0 < options.atol < float("inf"):
        raise BadInput(f"--atol {options.atol:g} is no limit", remedy="give a number above 0, such as 1e-3")


def _export(model: Source, out: Path, stage: Path, options: ExportOptions, step: Step) -> Exported:
    import torch

    from vlm_edge.backends.onnx import export
    from vlm_edge.models.text_weights import text_digest
    from vlm_edge.models.weights import load_parts

    components = model.components
    step(STEPS[0])
    names = tuple(components.VisionAndProjector.axes)
    inputs = tower_inputs(model.images, model.settings, names)
    step(STEPS[1])
    torch_model = load_parts(model.checkpoint, components.PARTS, dtype=torch.float32)
    hashes = {**model.hashes, llm.VISION_SOURCE: source.weights_hash(torch_model, components.PARTS)}
    old, hashes = llm.same_model(out, hashes, model.name, llm.TEXT_SOURCE, partial(text_digest, model.checkpoint))
    module = components.VisionAndProjector(torch_model)
    newline = newline_file(components, torch_model, stage)
    step(STEPS[2])
    ranges = options.dtype == "fp16"
    traced = export.trace(module, inputs, component="vision", opset=options.opset, ranges=ranges, consume=True)
    del module, torch_model
    gc.collect()
    step(STEPS[3])
    folder = f"vision/{options.target}"
    threads = options.threads or host.real_cores()
    written = export.write(
        traced, stage / folder, dtype=options.dtype, target=options.target, threads=threads, atol=options.atol
    )
    references.save(
        references.keep_rows(inputs, traced.observation.outputs, traced.values), stage / folder / "references.npz"
    )
    step(STEPS[4])
    parity = tuple(replace(row, component=folder) for row in written.parity.results())
    manifest = manifest_of(model, old)
    manifest = replace(
        manifest,
        source={**manifest.source, **model.origin, **hashes},
        artifacts=tuple(a for a in manifest.artifacts if not (_is_vision(a) and a.target == options.target)),
        parity=(*(row for row in manifest.parity if not f"{row.component}/".startswith(f"{folder}/")), *parity),
    )
    graph = [
        Staged(
            f"{folder}/{name}",
            "vision.graph" if name == export.GRAPH else "vision.graph.data",
            options.target,
            options.dtype,
        )
        for name in written.files
    ]
    kept = Staged(f"{folder}/references.npz", "vision.references", options.target, "fp32")
    bundle = publish(out, stage, [*copied(model.checkpoint, stage), *graph, kept, *newline], manifest, old=old)
    added = tuple(a for a in bundle.manifest.artifacts if _is_vision(a) and a.target == options.target)
    return Exported(bundle, options, added, parity, written.scheme, written.why)


def _export_decoder(
    model: Source, out: Path, stage: Path, options: ExportOptions, step: Step, seen: Exported | None
) -> Exported:
    """Add the decoder to what was exported before it under the same lock, if anything was."""
    part = llm.VISION_SOURCE
    known = {part: seen.bundle.manifest.source[part]} if seen else {}
    job = llm.DecoderJob(
        model.checkpoint, model.spec, model.name, {**model.hashes, **known}, options.target, options.dtype,
        options.threads or host.real_cores(), manifest=partial(manifest_of, model),
        configuration=partial(copied, model.checkpoint), vision_hash=partial(vision_hash, model),
        atol=options.atol,
    )  # fmt: skip
    done = llm.export_decoder(job, out, stage, step)
    before = seen or Exported(done.bundle, options, (), ())
    return replace(
        before,
        bundle=done.bundle,
        artifacts=(*before.artifacts, *done.artifacts),
        parity=(*before.parity, *done.parity),
    )


def vision_hash(model: Source) -> str:
    """What a bundle records of a checkpoint's tower and projector; reads both."""
    import torch

    from vlm_edge.models.weights import load_parts

    parts = model.components.PARTS
    return source.weights_hash(load_parts(model.checkpoint, parts, dtype=torch.float32), parts)


def _is_vision(artifact: ArtifactRef) -> bool:
    return artifact.role.startswith("vision.")


def manifest_of(model: Source, old: Manifest | None) -> Manifest:
    """The bundle's manifest before anything is added: the one that is there, or a new one; raises BadInput."""
    tools = tool_versions()
    if old is not None:
        return replace(old, tools={**old.tools, **tools})
    context = min(model.spec.text.max_positions, CONTEXT_TOKENS)
    new_tokens = min(RunDefaults().max_new_tokens, max(1, context // 2))
    # The tiles that the family's own rules cut, and no others until a plan says how many fit.
    return checked(
        Manifest(
            schema_version=1, name=model.name, source=dict(model.hashes), tools=tools, model=model.spec,
            limits=Limits(max_tiles=model.spec.geometry.most_choice, max_model_len=context, max_images=MAX_IMAGES),
            defaults=RunDefaults(tiling="grid", max_new_tokens=new_tokens), artifacts=(),
        )
    )  # fmt: skip


def newline_file(components: Any, torch_model: Any, stage: Path) -> list[Staged]:
    """The learned vector that ends a row of visual tokens, where the family has one, as a table of one row."""
    find = getattr(components, "image_newline", None)
    if find is None:
        return []
    from safetensors.numpy import save

    path = stage / NEWLINE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({"newline": np.ascontiguousarray(find(torch_model).float().numpy()[None])}))
    return [Staged(NEWLINE, "vision.newline", "any", "fp32")]


def copied(checkpoint: Checkpoint, stage: Path) -> list[Staged]:
    """The checkpoint's configuration files, as far as it has them, in the stage.

    What checkpoints keep inside other files gets the file of its own that the runtime reads: the image processor of
    processor_config.json, and the template of chat_template.json.
    """
    files = []
    inside = {
        "preprocessor_config": _inside(checkpoint, "processor_config.json", "image_processor", dict),
        "chat_template": _inside(checkpoint, "chat_template.json", "chat_template", str),
    }
    for role, name in CONFIGURATION.items():
        if (checkpoint.root / name).is_file():
            shutil.copyfile(checkpoint.root / name, stage / name)
        elif inside.get(role) is not None:
            text = inside[role]
            (stage / name).write_text(text if isinstance(text, str) else json.dumps(text, indent=1), "utf-8")
        else:
            continue
        files.append(Staged(name, role))
    return files


def _inside(checkpoint: Checkpoint, name: str, key: str, kind: type) -> Any:
    value = (checkpoint.optional_json(name) or {}).get(key)
    return value if isinstance(value, kind) else None
