"""vlm-edge bench [BUNDLE]"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import (
    AsJson,
    Budget,
    BundleArgument,
    Device,
    Keep,
    MaxPixels,
    MaxTiles,
    Reduce,
    Threads,
    Threshold,
    Tiling,
    Verify,
)
from vlm_edge.units import GIB, format_bytes

if TYPE_CHECKING:
    from vlm_edge.pipeline.measuring.bench import Benched

Image = Annotated[
    Path | None, typer.Option(help="What to ask about; default: a page of 1322 x 1344 px.", show_default=False)
]
Question = Annotated[str, typer.Option(help="What to ask.")]
NewTokens = Annotated[int, typer.Option("--max-new-tokens", help="Tokens to decode, past the end token too.")]
Repeats = Annotated[int, typer.Option(help="Warm measurements.")]
Warmup = Annotated[int, typer.Option(help="Questions that are dropped between the cold and the warm ones.")]
Png = Annotated[Path | None, typer.Option(help="Draw the figures; needs the report extra.", show_default=False)]


def bench(
    bundle: BundleArgument = None,
    image: Image = None,
    question: Question = "what is the total?",
    max_new_tokens: NewTokens = 32,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    tiling: Tiling = None,
    max_tiles: MaxTiles = None,
    reduce: Reduce = None,
    keep: Keep = None,
    threshold: Threshold = None,
    device: Device = "auto",
    threads: Threads = None,
    budget: Budget = None,
    max_pixels: MaxPixels = None,
    verify: Verify = False,
    png: Png = None,
    as_json: AsJson = False,
) -> None:
    """Measure a bundle on this machine: time to the first token, decode speed against memory bandwidth, and peak memory.

    Every question is asked as if its image were new, one at a time (batch 1). The first one of the process is told
    apart from those that follow.

    Example: vlm-edge bench out/ --image page.png --png bench.png
    """
    if png is not None:
        from vlm_edge.pipeline.measuring.bench_chart import check_drawing

        check_drawing(png)
    from vlm_edge.core import host
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.answering.preflight import find_bundle, preflight
    from vlm_edge.pipeline.answering.run import Pipeline
    from vlm_edge.pipeline.measuring import bench as benching

    benching.check_settings(repeats=repeats, warmup=warmup, new_tokens=max_new_tokens)
    options = AskOptions(
        tiling=tiling, max_tiles=max_tiles, reduce=reduce, keep=keep, threshold=threshold,
        max_new_tokens=max_new_tokens, max_pixels=max_pixels,
    )  # fmt: skip
    shown = image or benching.default_image()
    opened = find_bundle(bundle)
    fitted = preflight(opened, [shown], options, budget, device=device, again=True)
    if fitted.note:
        render.note(fitted.note)
    with render.progress(f"bench {opened.manifest.name}", 1 + warmup + repeats) as step:
        found = benching.bench(
            lambda: Pipeline.load(opened, device=device, threads=threads, budget=budget, verify=verify),
            shown,
            question,
            fitted.options,
            threads=threads or host.real_cores(),
            repeats=repeats,
            warmup=warmup,
            on_run=step,
        )
    if png is not None:
        from vlm_edge.pipeline.measuring.bench_chart import draw

        draw(found.to_json(), png)
    if as_json:
        render.emit_json(found.to_json())
    else:
        _show(found)


def _show(found: Benched) -> None:
    plain = found.to_json()
    tokens, width, height = plain["tokens"], *found.image_px
    processors = ", ".join([plain["machine"]["cpu"], *plain["machine"]["gpus"]])
    about = [
        ("model", f"{plain['model']} ({plain['family']})"),
        ("LLM", plain["llm_precision"]),
        ("vision", plain["vision_precision"]),
        ("batch", str(plain["batch"])),
        ("device", f"{plain['device']}, {plain['threads']} threads; {processors}"),
        ("image", f"{plain['image']}, {width} x {height} px, {plain['tiles']} tiles"),
        ("visual tokens", f"{tokens['visual_before']} before reduction, {tokens['visual_after']} after"),
        ("prefill", f"{tokens['prefill']} tokens, {plain['prefill_tokens_per_s']:.0f} tok/s"),
        ("decode", f"{tokens['generated']} tokens, {plain['tokens_per_s']:.1f} tok/s"),
        ("memory bandwidth", _bandwidth(found)),
        ("peak memory", f"{format_bytes(found.planned_peak_bytes)} planned, {format_bytes(found.measured_peak_bytes)} measured"),
        ("versions", ", ".join(f"{name} {version}" for name, version in found.versions.items())),
    ]  # fmt: skip
    render.table(f"Bench of {plain['model']}, {plain['date']}", ("what", "value"), about)
    cold, warm = plain["cold_ms"], plain["warm_ms"]
    names = {"ttft": "first token (TTFT)", "per_token": "each further token"}
    rows = [("load", f"{cold['load']:.1f}", "", "", "")]
    rows += [
        (names.get(name, name), f"{cold[name]:.2f}", *(f"{spread[key]:.2f}" for key in ("median", "min", "max")))
        for name, spread in warm.items()
    ]
    settings = plain["settings"]
    title = f"\nMilliseconds: the first image, and {settings['repeats']} more after {settings['warmup']} for warming up"
    render.table(title, ("stage", "cold", "warm, median", "least", "most"), rows)


def _bandwidth(found: Benched) -> str:
    decode, token_ms = found.decode, found.spread(lambda s: s.token_ms).median
    reads = f"{format_bytes(decode.bytes_per_token)} read a token"
    share = decode.share(token_ms)
    if share is None or decode.bandwidth is None:
        return f"{reads}; what the device delivers is measured on CPUs only"
    told = f"{reads}, {100 * share:.0f}% of the {decode.bandwidth / GIB:.1f} GiB/s that memory delivers"
    return f"{told}; the CPU's caches hold all of it" if decode.in_cache else told
