"""vlm-edge export MODEL OUT"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson, Offline, Out, Revision
from vlm_edge.units import format_bytes

if TYPE_CHECKING:
    from vlm_edge.pipeline.exporting.export import Exported

COLUMNS = ("file", "size", "dtype")


def _targets() -> list[str]:
    from vlm_edge.backends.onnx.export import TARGETS  # when the shell asks, not when the program starts

    return list(TARGETS)


def _backends() -> list[str]:
    from vlm_edge.pipeline.exporting.export import BACKENDS

    return list(BACKENDS)


def _dtypes() -> list[str]:
    from vlm_edge.backends.onnx.export import DTYPES

    return list(DTYPES)


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="Checkpoint folder (config.json, preprocessor_config.json, safetensors) or hub id."
    ),
]
Component = Annotated[str, typer.Option(help="vision,projector (they become one graph), llm.")]
Target = Annotated[
    str | None,
    typer.Option(
        help="cpu, cuda or tensorrt; default: cpu, for engines tensorrt.", show_default=False, autocompletion=_targets
    ),
]
Backend = Annotated[
    str,
    typer.Option(help="onnx; or tensorrt, which builds this machine's engine as well.", autocompletion=_backends),
]
EmitScript = Annotated[
    bool, typer.Option("--emit-script", help="Write the engine's build as a trtexec script; needs no TensorRT.")
]
Dtype = Annotated[str, typer.Option(help="fp32, fp16 or int8 (int8 for cpu only).", autocompletion=_dtypes)]
Opset = Annotated[int, typer.Option(help="ONNX operator set.")]
Atol = Annotated[
    float | None,
    typer.Option(help="Largest difference of one value, beside the dtype's own limits.", show_default=False),
]


def export(
    model: Model,
    out: Out,
    component: Component = "vision,projector",
    target: Target = None,
    backend: Backend = "onnx",
    emit_script: EmitScript = False,
    dtype: Dtype = "fp32",
    opset: Opset = 20,
    atol: Atol = None,
    revision: Revision = "",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Export a checkpoint's vision tower and projector, or its decoder, to ONNX and compare the graph with torch.

    A graph that differs from torch does not enter OUT, and the exit code is 1. A bundle keeps one graph of each kind for each
    target; exporting again replaces it. The decoder (--component llm) comes in fp32 or fp16. With the bundle as both MODEL
    and OUT, --backend tensorrt builds an engine from the graph that it holds.

    Example: vlm-edge export llava-1.5-7b-hf/ out/ --dtype int8
    """
    from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

    parts = tuple(part.strip() for part in component.split(","))
    wanted = target or ("tensorrt" if emit_script or backend == "tensorrt" else "cpu")
    options = ExportOptions(
        components=parts, target=wanted, dtype=dtype, opset=opset, atol=atol, revision=revision, offline=offline,
        bars=not render.VERBOSITY.quiet, backend=backend, emit_script=emit_script,
    )  # fmt: skip
    done = export_model(model, out, options, on_step=render.note)
    if as_json:
        render.emit_json(_to_json(done))
        return
    _show(done)


def _to_json(done: Exported) -> dict[str, object]:
    from vlm_edge.core.load import to_plain

    return {
        "bundle": str(done.bundle.root),
        "name": done.bundle.manifest.name,
        "components": list(done.options.components),
        "target": done.options.target,
        "dtype": done.options.dtype,
        "opset": done.options.opset,
        "backend": done.options.backend,
        "source": dict(done.bundle.manifest.source),
        "artifacts": [to_plain(artifact) for artifact in done.artifacts],
        "parity": [to_plain(row) for row in done.parity],
        "scheme": done.scheme,
        "why": done.why,
    }


def _show(done: Exported) -> None:
    rows = [(artifact.path, format_bytes(artifact.bytes), artifact.dtype) for artifact in done.artifacts]
    render.table(f"{done.bundle.manifest.name} in {done.bundle.root}", COLUMNS, rows)
    for row in done.parity:
        sign = ">=" if row.metric == "cosine" else "<="
        render.emit(f"{row.component} {row.metric}: {row.value:.7g} ({sign} {row.limit:g})", end="\n")
    if done.why:
        render.emit(f"{done.scheme}: {done.why}", end="\n")
