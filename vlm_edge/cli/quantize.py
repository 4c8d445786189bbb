"""vlm-edge quantize MODEL OUT"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson, Checkpoint, Method, Offline, Out, Revision, Samples, Seqlen, typed
from vlm_edge.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from vlm_edge.pipeline.quantizing.quantize import Progress, Quantized

COLUMNS = ("layer", "loss / RTN", "ratios", "groups clipped")


def _targets() -> list[str]:
    return ["none", "cpu", "cuda"]


Target = Annotated[
    str,
    typer.Option(help="none: AutoAWQ's format only; cpu or cuda: an int4 ONNX decoder too.", autocompletion=_targets),
]
Bits = Annotated[int, typer.Option(help="4; 3 and 2 are for comparisons, and are written as 4-bit codes.")]
GroupSize = Annotated[int, typer.Option(help="Inputs that share a scale: 128, 64 or 32.")]
Symmetric = Annotated[bool, typer.Option("--symmetric", help="The middle code is every group's zero point.")]
Calib = Annotated[
    Path | None,
    typer.Option(
        help='JSON Lines of {"text", "image"?, "answer"?}, or a folder; default: the set that ships.',
        show_default=False,
    ),
]
MaxMemory = Annotated[
    str | None, typer.Option(help="Memory that this process may hold, such as 8GiB.", show_default=False)
]
LmHead = Annotated[
    str,
    typer.Option(help="Of the ONNX decoder: fp16, int8 or int4. On a CPU fp16 is held as fp32: int8 is much quicker."),
]
SearchTokens = Annotated[
    int, typer.Option(help="Calibration tokens on which scales are judged; more take longer and wander less.")
]
KvCache = Annotated[
    str, typer.Option(help="Of the ONNX decoder: int8 or int4 with scales found by calibration; auto: its float type.")
]


def quantize(
    model: Checkpoint,
    out: Out,
    target: Target = "none",
    bits: Bits = 4,
    group_size: GroupSize = 128,
    symmetric: Symmetric = False,
    calib: Calib = None,
    samples: Samples = 32,
    seqlen: Seqlen = None,
    search_tokens: SearchTokens = 512,
    max_memory: MaxMemory = None,
    method: Method = "awq",
    lm_head: LmHead = "fp16",
    kv_cache_dtype: KvCache = "auto",
    revision: Revision = "",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Quantize a checkpoint's language model to 4 bits with AWQ, one decoder layer at a time.

    Images of the calibration set pass through the checkpoint's own tower. A run that was stopped goes on behind its last
    finished layer. The exit code is 1, and nothing enters OUT, when AWQ is further from the fp32 model than plain rounding.

    With --target, an ONNX decoder of the same weights is written for `vlm-edge run`, and compared with the rounded layers: its
    logits, and that its likeliest tokens are theirs.

    Example: vlm-edge quantize llava-1.5-7b-hf/ out/ --target cpu --lm-head int8 --max-memory 8GiB
    """
    from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions, quantize_model

    options = QuantizeOptions(
        target=target, bits=bits, group_size=group_size, symmetric=symmetric, calib=calib, samples=samples,
        seqlen=seqlen, max_memory_bytes=parse_bytes(max_memory) if max_memory else None, method=method, lm_head=lm_head,
        kv_cache_dtype=kv_cache_dtype, search_tokens=search_tokens,
        revision=revision, offline=offline, bars=not render.VERBOSITY.quiet,
    )  # fmt: skip
    with render.layers("quantize") as on_layer:
        done = quantize_model(
            model,
            out,
            options,
            on_progress=lambda found: on_layer(found.layer, found.layers, _line(found)),
            on_note=render.note,
            command=typed(),
        )
    if as_json:
        render.emit_json(_to_json(done))
        return
    _show(done)


def _line(found: Progress) -> str:
    ratio = "" if found.loss_ratio is None else f"loss {found.loss_ratio:.2f} of RTN's, "
    memory = f"{format_bytes(found.rss_bytes)} held, peak {format_bytes(found.peak_bytes)}"
    return f"layer {found.layer}/{found.layers}: {ratio}{render.minutes(found.left_s)} left, {memory}"


def _to_json(done: Quantized) -> dict[str, Any]:
    from vlm_edge.core.load import to_plain

    return {"out": str(done.out), "artifacts": [to_plain(artifact) for artifact in done.artifacts], **done.report}


def _show(done: Quantized) -> None:
    report = done.report
    rows = [_row(layer) for layer in report["layers"]]
    if any(any(row[1:]) for row in rows):
        render.table(f"{report['model']}: {report['architecture']}", COLUMNS, rows)
    written = sum(artifact.bytes for artifact in done.artifacts if artifact.role == "llm.awq")
    memory = report["memory"]
    render.emit(f"{done.out / 'llm/awq'}: {format_bytes(written)}", end="\n")
    if graph := report.get("onnx"):
        size = sum(artifact.bytes for artifact in done.artifacts if artifact.role.startswith("llm.graph"))
        found = graph.get("kv_cache") or graph["as_run"] or graph["exact"]
        render.emit(
            f"{done.out / 'llm' / graph['target']}: {format_bytes(size)}; cosine {found['cosine']:.6f} and KL {found['kl']:.2g} "
            f"to the rounded layers, {graph['activations']} activations",
            end="\n",
        )
    if held := report["held_out"]:
        render.emit(
            f"held-out KL to fp32 over {held['tokens']} tokens: {held['kl']:.4g} nats (RTN {held['plain_kl']:.4g})",
            end="\n",
        )
    render.emit(f"{report['seconds']:.1f} s, peak {format_bytes(memory['peak_bytes'])}", end="\n")


def _row(layer: dict[str, Any]) -> tuple[str, ...]:
    ratio = layer["error"] / layer["plain_error"] if layer["error"] is not None and layer["plain_error"] else None
    ratios = " ".join("-" if pair["ratio"] is None else f"{pair['ratio']:.2f}" for pair in layer["pairs"])
    clips = layer["clip_share"] or {}
    share = f"{sum(clips.values()) / len(clips):.0%}" if clips else ""
    return str(layer["index"]), "" if ratio is None else f"{ratio:.3f}", ratios, share
