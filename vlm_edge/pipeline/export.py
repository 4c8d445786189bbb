"""A checkpoint's vision tower and projector -> a proven graph in a bundle. Needs the `build` extra."""

from __future__ import annotations

import gc
import hashlib
import importlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge import __version__
from vlm_edge.backends.onnx import references
from vlm_edge.backends.onnx.export import DTYPES, OPSET, TARGETS
from vlm_edge.core import discover, host
from vlm_edge.core.bundle import ArtifactRef, Bundle, Limits, Manifest, ParityResult, RunDefaults
from vlm_edge.core.bundle_writer import CONFIGURATION, Staged, checked, locked, present, publish
from vlm_edge.core.checkpoint import Checkpoint, open_checkpoint
from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput, MissingDependency
from vlm_edge.pipeline.calibration import tower_inputs

COMPONENTS = ("vision", "projector")
OPSETS = range(18, 24)
STEPS = (
    "prepare the calibration images",
    "load the weights",
    "trace",
    "write and compare",
    "publish",
)
CONTEXT_TOKENS = 4096
"""The context that a new bundle allows, where its decoder has as many positions: a KV cache for more is seldom wanted."""
_NEEDED = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
_MODULE_OF_FAMILY = "vlm_edge.models.{}.{}"
Step = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What is asked for.  components: parts of the model.  opset: of the graph.  threads: of the comparison; None: all cores."""

    components: tuple[str, ...] = COMPONENTS
    target: str = "cpu"
    dtype: str = "fp32"
    opset: int = OPSET
    threads: int | None = None


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


@dataclass(frozen=True)
class Described:
    """A vision-language checkpoint: its family, its sizes, how its images are prepared, and hashes that say which it is."""

    checkpoint: Checkpoint
    family: VlmFamily
    spec: ModelSpec
    settings: Any
    images: Any
    source: Mapping[str, str]

    @property
    def name(self) -> str:
        """The checkpoint folder's own name."""
        return self.checkpoint.root.resolve().name


def export_model(
    model: Path, out: Path, options: ExportOptions | None = None, *, on_step: Step | None = None
) -> Exported:
    """Export MODEL's vision tower and projector as one graph, compare it with torch, and enter it into the bundle OUT.

    model: a local checkpoint folder.  out: a new folder, or a bundle of the same model, whose graph for the target is replaced.
    on_step: called with each of STEPS as it begins.
    Peak memory: the tower and projector in fp32, and one image's activations.
    Raises BadInput, MissingDependency, DamagedBundle; CheckFailed when the graph differs from torch. OUT is then as it was.
    """
    options, step = options or ExportOptions(), on_step or (lambda _: None)
    _check_options(options)
    _check_tools()
    described = describe(model)
    if out.resolve() == described.checkpoint.root.resolve():
        raise BadInput(f"{out} is the checkpoint itself", remedy="name another folder for the bundle")
    present(out, described.source, described.name)
    manifest_of(described, None)
    with locked(out) as stage:
        return _export(described, out, stage, options, step)


def _check_options(options: ExportOptions) -> None:
    unknown = [name for name in options.components if name not in COMPONENTS]
    if unknown:
        raise BadInput(f"--component {unknown[0]} cannot be exported", remedy=f"use --component {','.join(COMPONENTS)}")
    if {*options.components} != {*COMPONENTS}:
        raise BadInput(
            "vision tower and projector are exported as one graph",
            remedy=f"use --component {','.join(COMPONENTS)}",
        )
    if options.target not in TARGETS or options.dtype not in DTYPES:
        raise BadInput(
            f"there is no export to {options.dtype} for {options.target}",
            remedy=f"choose --dtype {'|'.join(DTYPES)} and --target {'|'.join(TARGETS)}",
        )
    if options.dtype == "int8" and options.target != "cpu":
        raise BadInput(f"8-bit weights are for the CPU, not for {options.target}", remedy="use --dtype fp16 there")
    if options.opset not in OPSETS:
        raise BadInput(
            f"--opset {options.opset} is not supported",
            remedy=f"use {OPSETS[0]} to {OPSETS[-1]}; {OPSET} is tested most",
        )


def _check_tools() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"export needs {', '.join(missing)}, which is not installed", remedy="pip install 'vlm-edge[cpu,build]'"
        )


def describe(root: Path) -> Described:
    """Read a checkpoint's configuration and headers; raises BadInput for a model that cannot be exported."""
    if not root.exists() and len(root.parts) == 2 and not root.is_absolute():
        raise BadInput(
            f"there is no folder {root}, and models are not fetched from a hub yet",
            remedy=f"download it first: hf download {root} --local-dir FOLDER; then export FOLDER",
        )
    checkpoint = open_checkpoint(root)
    family = discover.family_of(checkpoint.config)
    if importlib.util.find_spec(_MODULE_OF_FAMILY.format(family.name, "components")) is None:
        raise BadInput(
            f"models of the family {family.name} can be planned, not exported",
            remedy="use a checkpoint of another family",
        )
    images = importlib.import_module(_MODULE_OF_FAMILY.format(family.name, "images"))
    settings = images.settings_from(checkpoint.config, _preprocessor(checkpoint))
    return Described(checkpoint, family, family.spec(checkpoint.config), settings, images, source_hashes(checkpoint))


def _preprocessor(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """preprocessor_config.json; or what newer checkpoints have of it inside processor_config.json."""
    alone = checkpoint.optional_json("preprocessor_config.json")
    if alone is not None:
        return alone
    inner = (checkpoint.optional_json("processor_config.json") or {}).get("image_processor")
    return inner if isinstance(inner, dict) else checkpoint.json("preprocessor_config.json")


def source_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """Which model a checkpoint is, without reading its weights: SHA-256 of its config and of its tensors' names and shapes."""
    index = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in checkpoint.tensors.items()}
    return {"config": _digest(dict(checkpoint.config)), "tensors": _digest(index)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _export(model: Described, out: Path, stage: Path, options: ExportOptions, step: Step) -> Exported:
    import torch

    from vlm_edge.backends.onnx import export
    from vlm_edge.models.weights import load_parts

    components = importlib.import_module(_MODULE_OF_FAMILY.format(model.family.name, "components"))
    step(STEPS[0])
    names = tuple(components.VisionAndProjector.axes)
    inputs = tower_inputs(model.images, model.settings, names)
    step(STEPS[1])
    torch_model = load_parts(model.checkpoint, components.PARTS, dtype=torch.float32)
    source = {**model.source, "vision": _weights_hash(torch_model, components.PARTS)}
    old = present(out, source, model.name)
    module = components.VisionAndProjector(torch_model)
    step(STEPS[2])
    ranges = options.dtype == "fp16"
    traced = export.trace(module, inputs, component="vision", opset=options.opset, ranges=ranges)
    del module, torch_model
    gc.collect()
    step(STEPS[3])
    folder = f"vision/{options.target}"
    threads = options.threads or host.real_cores()
    written = export.write(traced, stage / folder, dtype=options.dtype, target=options.target, threads=threads)
    references.save(references.keep_rows(inputs, traced.observation.outputs), stage / folder / "references.npz")
    step(STEPS[4])
    parity = tuple(replace(row, component=f"vision/{options.target}") for row in written.parity.results())
    manifest = manifest_of(model, old)
    manifest = replace(
        manifest,
        source={**manifest.source, **source},
        artifacts=tuple(a for a in manifest.artifacts if not (_is_vision(a) and a.target == options.target)),
        parity=(*(row for row in manifest.parity if row.component != f"vision/{options.target}"), *parity),
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
    bundle = publish(out, stage, [*copied(model.checkpoint, stage), *graph, kept], manifest, old=old)
    added = tuple(a for a in bundle.manifest.artifacts if _is_vision(a) and a.target == options.target)
    return Exported(bundle, options, added, parity, written.scheme, written.why)


def _is_vision(artifact: ArtifactRef) -> bool:
    return artifact.role.startswith("vision.")


def _weights_hash(model: Any, parts: Sequence[str]) -> str:
    """SHA-256 of the parameters that were loaded, so that a fine-tune with the same shapes counts as another model."""
    from vlm_edge.models.layouts import within

    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if within(name, parts):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().numpy()).data)
    return digest.hexdigest()


def manifest_of(model: Described, old: Manifest | None) -> Manifest:
    """The bundle's manifest before anything is added: the one that is there, or a new one; raises BadInput."""
    tools = {"vlm-edge": __version__} | {tool: metadata.version(tool) for tool in _NEEDED if _is_distribution(tool)}
    if old is not None:
        return replace(old, tools={**old.tools, **tools})
    context = min(model.spec.text.max_positions, CONTEXT_TOKENS)
    new_tokens = min(RunDefaults().max_new_tokens, max(1, context // 2))
    # No tiles beside what the family itself cuts, until a plan says how many fit.
    return checked(
        Manifest(
            schema_version=1, name=model.name, source=dict(model.source), tools=tools, model=model.spec,
            limits=Limits(max_tiles=0, max_model_len=context),
            defaults=RunDefaults(tiling="none", max_new_tokens=new_tokens), artifacts=(),
        )
    )  # fmt: skip


def _is_distribution(name: str) -> bool:
    """onnxruntime-gpu gives the module onnxruntime without a distribution of that name."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def copied(checkpoint: Checkpoint, stage: Path) -> list[Staged]:
    """The checkpoint's configuration files, as far as it has them, copied into the stage."""
    files = [Staged(name, role) for role, name in CONFIGURATION.items() if (checkpoint.root / name).is_file()]
    for file in files:
        shutil.copyfile(checkpoint.root / file.path, stage / file.path)
    return files
