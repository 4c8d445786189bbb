"""A bundle's TensorRT engines: built from its graph, or left to a script, and entered only once they compute what torch did.

Not run with TensorRT itself; see backends/tensorrt/library.py.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from vlm_edge.backends.onnx import references
from vlm_edge.backends.onnx.parity import Parity, limit_for, require
from vlm_edge.core.bundle import ArtifactRef, Bundle, Manifest, ParityResult, open_bundle
from vlm_edge.core.bundle_writer import Staged, locked, publish
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.errors import BadInput, CheckFailed, DamagedBundle
from vlm_edge.memory.plan import ENCODE_VIEWS
from vlm_edge.memory.vision import vision_activation_bytes
from vlm_edge.pipeline.exporting.example_inputs import tower_inputs
from vlm_edge.pipeline.exporting.source import Source, bundle_images

if TYPE_CHECKING:
    from vlm_edge.backends.tensorrt.engine_key import EngineKey
    from vlm_edge.backends.tensorrt.settings import BuildSettings

TARGET = "tensorrt"
FOLDER = f"vision/{TARGET}"
SCRIPT = "build_engine.sh"
INPUTS = ("pixel_values",)
_LARGE_PX = 16_384
Step = Callable[[str], None]


class Added(NamedTuple):
    """The bundle now, the files that are new in it or were there already, and how an engine compares."""

    bundle: Bundle
    artifacts: tuple[ArtifactRef, ...]
    parity: tuple[ParityResult, ...] = ()


def check_family(model: Source) -> None:
    """Raise BadInput unless the encoder reads views of one size and nothing else, which is all that a profile describes."""
    names = tuple(getattr(model.components.VisionAndProjector, "axes", None) or INPUTS)
    if names != INPUTS or hasattr(model.images, "pack"):
        raise BadInput(
            f"there are no TensorRT engines for {model.family.name}: its images become {', '.join(names)}, of any size",
            remedy="use --backend onnx; ONNX Runtime runs the graph on the GPU",
        )


def check_machine() -> None:
    """Raise MissingDependency or BadInput where no engine can be built, before minutes go into the graph."""
    from vlm_edge.backends.tensorrt.build import this_machine

    this_machine()


def settings_of(bundle: Bundle) -> BuildSettings:
    """What an engine of a bundle is built for.  Raises BadInput, DamagedBundle."""
    _, settings = bundle_images(bundle)
    return profile(bundle.manifest, settings.geometry)


def profile(manifest: Manifest, geometry: TokenGeometry) -> BuildSettings:
    """Views: as many as the recipe allows or the family cuts, at most those of one call. Workspace: the plan's activations."""
    from vlm_edge.backends.tensorrt.settings import LEAST_WORKSPACE_BYTES, settings_for

    limits = manifest.limits
    shapes = ((_LARGE_PX, _LARGE_PX), (_LARGE_PX, _LARGE_PX // 4), (_LARGE_PX // 4, _LARGE_PX))
    tiles = max(limits.max_tiles, *(geometry.layout(shape).views - 1 for shape in shapes))
    planned = vision_activation_bytes(manifest.model.vision, views=min(1 + tiles, ENCODE_VIEWS))
    return settings_for(
        replace(limits, max_tiles=tiles),
        image_px=geometry.view_px,
        workspace_bytes=max(planned, LEAST_WORKSPACE_BYTES),
        views_in_call=ENCODE_VIEWS,
    )


def add_script(out: Path) -> Added:
    """Write the build as a script around trtexec beside the graph; needs no TensorRT.  Raises DamagedBundle, BadInput."""
    from vlm_edge.backends.tensorrt.script import emit_script

    with locked(out) as stage:
        bundle = open_bundle(out)
        graph = _graph(bundle)
        (stage / FOLDER).mkdir(parents=True)
        # By its name alone: the script goes with the folder to another machine.
        text = emit_script(Path(graph.path).relative_to(FOLDER), settings_of(bundle))
        (stage / FOLDER / SCRIPT).write_text(text, "utf-8", newline="\n")
        staged = Staged(f"{FOLDER}/{SCRIPT}", "vision.script", TARGET)
        bundle = publish(out, stage, [staged], bundle.manifest, old=bundle.manifest)
    return Added(bundle, tuple(a for a in bundle.manifest.artifacts if a.path == staged.path))


def add_engine(out: Path, *, atol: float | None = None, step: Step) -> Added:
    """Make this machine's engine of the bundle's graph, compare it with the stored references, and enter it.

    An engine that fits (GPU, TensorRT, graph, settings) is kept; `model.engine`, which the script leaves beside the graph, is
    taken over; otherwise one is built, and engines of other machines stay.
    Raises BadInput, MissingDependency, DamagedBundle; CheckFailed when the engine differs. The bundle is then as it was.
    """
    from vlm_edge.backends.tensorrt import adopt, build, engine_key

    with locked(out) as stage:
        bundle = open_bundle(out)
        graph, settings = out / _graph(bundle).path, settings_of(bundle)
        key = engine_key.EngineKey(build.this_machine(), engine_key.graph_digest(graph), settings)
        component = f"{FOLDER}/{key.machine.stem}"
        if _is_there(bundle, key):
            return _added(bundle, key, component)
        folder = stage / FOLDER
        folder.mkdir(parents=True)
        timings = f"{key.machine.stem}.timing"
        if (out / FOLDER / timings).is_file():
            shutil.copyfile(out / FOLDER / timings, folder / timings)
        by_script = graph.with_suffix(".engine")
        taken_over = by_script.is_file()
        if taken_over:
            step(f"take over {by_script.name}")
            engine = adopt.adopt_engine(by_script, graph, folder, settings)
        else:
            step("build the engine")
            engine = build.build_engine(graph, folder, settings, report=_phases(step))
        step("compare the engine")
        parity = compare(bundle, engine, component, atol=atol)
        if taken_over and not parity.ok:
            raise CheckFailed(
                f"{by_script} does not compute what the bundle's graph does (relative error {parity.relative_error:.2e})",
                remedy=f"run {SCRIPT} again, which builds it from the graph that is there now, or delete it",
            )
        require(parity)
        bundle = publish(
            out, stage, _staged(folder, key, timings, _graph(bundle).dtype),
            _with_engine(bundle.manifest, key, component, parity.results()), old=bundle.manifest,
        )  # fmt: skip
        by_script.unlink(missing_ok=True)
    return _added(bundle, key, component)


def compare(bundle: Bundle, engine: Path, component: str, *, atol: float | None = None) -> Parity:
    """An engine's outputs on the calibration images against the references that were stored with its graph."""
    from vlm_edge.backends.tensorrt.runner import TensorRtEncoder

    stored = references.load(bundle.path("vision.references", target=TARGET))
    inputs = tower_inputs(*bundle_images(bundle), INPUTS)
    with TensorRtEncoder(engine) as encoder:
        outputs = [encoder.encode(arrays[INPUTS[0]], check=False) for arrays in inputs]
    dtype = _graph(bundle).dtype
    return references.check(stored, component, dtype, inputs, outputs, limit=limit_for(dtype, atol))


def _graph(bundle: Bundle) -> ArtifactRef:
    path = bundle.path("vision.graph", target=TARGET)
    return next(artifact for artifact in bundle.manifest.artifacts if bundle.root / artifact.path == path)


def _is_there(bundle: Bundle, key: EngineKey) -> bool:
    from vlm_edge.backends.tensorrt import engine_key

    path = f"{FOLDER}/{key.file_name}"
    if path not in {artifact.path for artifact in bundle.manifest.artifacts}:
        return False
    try:
        engine_key.read_engine(bundle.root / path, key.machine)
    except DamagedBundle:
        return False
    return True


def _phases(step: Step) -> Callable[[str, int, int], None]:
    """TensorRT's phases as steps; each is told when it begins."""

    def tell(phase: str, done: int, _steps: int) -> None:
        if not done:
            step(f"TensorRT: {phase}")

    return tell


def _staged(folder: Path, key: EngineKey, timings: str, dtype: str) -> list[Staged]:
    files = [
        Staged(f"{FOLDER}/{key.file_name}", "vision.engine", TARGET, dtype),
        Staged(f"{FOLDER}/{key.file_name}.json", "vision.engine.record", TARGET),
    ]
    # Not `vision.`: the cache outlives the graph, whose other files go when it is exported again.
    kept = [Staged(f"{FOLDER}/{timings}", "tensorrt.timings", TARGET)] if (folder / timings).is_file() else []
    return files + kept


def _with_engine(manifest: Manifest, key: EngineKey, component: str, parity: tuple[ParityResult, ...]) -> Manifest:
    """Without what there was of this machine; the files are added when they are published."""
    return replace(
        manifest,
        tools={**manifest.tools, "tensorrt": key.machine.tensorrt},
        artifacts=tuple(a for a in manifest.artifacts if not a.path.startswith(f"{FOLDER}/{key.machine.stem}-")),
        parity=(*(row for row in manifest.parity if row.component != component), *parity),
    )


def _added(bundle: Bundle, key: EngineKey, component: str) -> Added:
    artifacts = tuple(a for a in bundle.manifest.artifacts if a.path.startswith(f"{FOLDER}/{key.file_name}"))
    return Added(bundle, artifacts, tuple(row for row in bundle.manifest.parity if row.component == component))
