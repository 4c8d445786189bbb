"""Time to the first token and memory for a page at 300 DPI: every tile, LLaVA-NeXT's own grid, salient tiles, and those reduced.

python -m benchmarks.shapes make llava-next-1.1b CHECKPOINT
vlm-edge export CHECKPOINT BUNDLE --dtype int8
vlm-edge quantize CHECKPOINT BUNDLE --method rtn --target cpu --lm-head int8
python -m benchmarks.large_page CHECKPOINT BUNDLE [--runs 5] [--threads 2] [--tiles 4] [--transformers float32|bfloat16|none]

Weights are random: counts, times and memory mean something, answers do not. Each row is a process of its own with its model loaded;
they take turns, run by run, and medians are told. Peak is a process's resident set up to the end, the mapped files in it included.
Every tile (each cell of 336 px at full resolution) is more than such a decoder's context. Its tokens are counted; its time is
extrapolated, from the time for a view and from a L + b L^2 fitted to the prefills of the other rows; its peak is that of a plan.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.engines import Engine
from vlm_edge.core import host
from vlm_edge.core.bundle import open_bundle
from vlm_edge.memory.plan import RUNTIME_BYTES, plan_request
from vlm_edge.memory.request import Request
from vlm_edge.pipeline.exporting.tools import tool_versions
from vlm_edge.pipeline.machine import cpu_name
from vlm_edge.pipeline.planning.inputs import find_model
from vlm_edge.units import MIB

PAGE_PX = (2550, 3300)
QUESTION = "what is the total?"
ROOM_FOR_TEXT = 256
LOOKS: dict[str, dict[str, Any]] = {
    "the whole image in one view": {"tiling": "none", "reduce": "none"},
    "the family's own AnyRes grid": {"tiling": "grid", "reduce": "none"},
    "salient tiles": {"tiling": "auto", "reduce": "none"},
    "salient tiles, tome to half": {"tiling": "auto", "reduce": "tome", "keep": 0.5},
}
PARTS = ("preprocess", "saliency", "vision", "reduce", "prefill")


def draw_page() -> Image.Image:
    """A form: lines of text in two blocks, of which four cells of 336 px hold most."""
    page = Image.new("RGB", PAGE_PX, "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(34)
    for left, top in ((370, 380), (1700, 2060)):
        for line in range(12):
            draw.text((left, top + 48 * line), f"item {line:02d}   {317 * (line + 3) % 997:03d}.50", "black", font)
    return page


def worker(kind: str, checkpoint: Path, bundle: Path, page: Path, threads: int, tiles: int, dtype: str) -> None:
    """Load, say so, and answer each line with the JSON of one run."""
    run = _by_transformers(checkpoint, bundle, page, threads, dtype) if kind == "transformers" else _by_us(
        LOOKS[kind], bundle, page, threads, tiles
    )  # fmt: skip
    print("ready", flush=True)
    for _ in sys.stdin:
        print(json.dumps(run() | {"peak": host.peak_rss_bytes()}), flush=True)


def _by_us(look: dict[str, Any], bundle: Path, page: Path, threads: int, tiles: int) -> Callable[[], dict[str, Any]]:
    from vlm_edge import AskOptions, Pipeline

    pipeline = Pipeline.load(bundle, device="cpu", threads=threads)
    most = {"max_tiles": tiles} if look["tiling"] == "auto" else {}
    options = AskOptions(**look, **most, max_new_tokens=1)

    def run() -> dict[str, Any]:
        pipeline.forget()
        answer = pipeline.ask(page, QUESTION, options)
        times = {name: answer.timings_ms[name] for name in PARTS}
        views = max(1, len(answer.views))
        counts = {"tokens": answer.tokens.visual_after, "prompt": answer.tokens.prompt, "views": views}
        return {"ttft": sum(times.values()), **counts, **times}

    return run


def _by_transformers(
    checkpoint: Path, bundle: Path, page: Path, threads: int, dtype: str
) -> Callable[[], dict[str, Any]]:
    """The same page by the family's own grid; the number of placeholders is the layout's."""
    import torch
    import transformers
    from tokenizers import Tokenizer
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

    torch.set_num_threads(threads)
    model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()
    file = json.loads((checkpoint / "preprocessor_config.json").read_text())
    processor = LlavaNextImageProcessorPil(
        **{key: value for key, value in file.items() if key != "image_processor_type"}
    )
    tokens = open_bundle(bundle).manifest.model.geometry.layout(PAGE_PX).visual_tokens
    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(f"USER: {QUESTION} ASSISTANT:").ids
    prompt = torch.tensor([[*ids[:2], *[model.config.image_token_id] * tokens, *ids[2:]]])

    def run() -> dict[str, Any]:
        start = time.perf_counter()
        pixels = processor(images=Image.open(page).convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            model.generate(
                input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values=pixels["pixel_values"].to(model.dtype),
                image_sizes=pixels["image_sizes"], max_new_tokens=1, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        return {"ttft": 1000 * (time.perf_counter() - start), "tokens": tokens, "prompt": prompt.shape[1]}

    return run


def every_tile(bundle: Path, found: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """tokens, ttft in ms and peak in bytes, from what the other rows took."""
    model = find_model(str(bundle)).subject
    assert model.geometry is not None
    finest = model.geometry.scales(PAGE_PX)[0]
    ours = [median(runs) for name, runs in found.items() if name in LOOKS]
    a_view = statistics.median(each["vision"] / each["views"] for each in ours)
    lengths = np.array([each["prompt"] for each in ours])
    fitted, *_ = np.linalg.lstsq(
        np.stack([lengths, lengths**2], 1), np.array([each["prefill"] for each in ours]), rcond=None
    )
    slope, curve = (max(0.0, float(value)) for value in fitted)
    length = finest.visual_tokens + ROOM_FOR_TEXT
    ttft = finest.views * a_view + slope * length + curve * length**2
    context = -(-length // 1024) * 1024
    longer = replace(model, text=replace(model.text, max_positions=context))
    request = Request(
        target="cpu", unified=True, kv_cache="fp32", vision_dtype="fp32", image_px=PAGE_PX, tiles=finest.views - 1,
        context=context, runtime_bytes=RUNTIME_BYTES,
    )  # fmt: skip
    peak = plan_request(longer, request, budget_bytes=1 << 50).peak_bytes
    return {"tokens": finest.visual_tokens, "views": finest.views, "ttft": ttft, "peak": peak}


def median(runs: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Of each figure."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def main(arguments: argparse.Namespace) -> None:
    """Run the rows in turns and print the table."""
    names = [*LOOKS, *([] if arguments.transformers == "none" else ["transformers"])]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.png"
        draw_page().save(page)
        paths = [
            str(arguments.checkpoint),
            str(arguments.bundle),
            str(page),
            str(arguments.threads),
            str(arguments.tiles),
            arguments.transformers,
        ]
        here = [sys.executable, "-m", "benchmarks.large_page", "--worker"]
        engines = [Engine(name, [*here, name, *paths], arguments.threads) for name in names]
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for engine in engines:  # once to warm up
            engine.ask("run")
        for number in range(arguments.runs):
            for engine in engines:
                found[engine.name].append(json.loads(engine.ask("run")))
            print(f"run {number + 1} of {arguments.runs}", file=sys.stderr, flush=True)
        for engine in engines:
            engine.close()
    print(table(found, every_tile(arguments.bundle, found), arguments))


def table(found: dict[str, list[dict[str, Any]]], every: dict[str, float], arguments: argparse.Namespace) -> str:
    """Markdown, with the machine and the versions."""
    lines = [
        f"A page of {PAGE_PX[0]} x {PAGE_PX[1]} px, {arguments.tiles} salient tiles; medians of {arguments.runs}.",
        "",
        "| what is shown | views | visual tokens | TTFT, s (least-most) | every tile / it | peak, MiB | encode, s | prefill, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        f"| every tile (time extrapolated, peak planned) | {every['views']} | {every['tokens']} | {every['ttft'] / 1000:.1f} "
        f"| 1.0 | {every['peak'] / MIB:.0f} | - | - |",
    ]
    for name, runs in found.items():
        middle = median(runs)
        times = [run["ttft"] / 1000 for run in runs]
        parts = [f"{middle[part] / 1000:.2f}" if part in middle else "-" for part in ("vision", "prefill")]
        views = f"{middle['views']:.0f}" if "views" in middle else "-"
        own = f"transformers, the family's own grid in {arguments.transformers}" if name == "transformers" else name
        lines.append(
            f"| {own} | {views} | {middle['tokens']:.0f} | {middle['ttft'] / 1000:.2f} "
            f"({min(times):.2f}-{max(times):.2f}) | {every['ttft'] / middle['ttft']:.1f} | {middle['peak'] / MIB:.0f} "
            f"| {' | '.join(parts)} |"
        )
    versions = ", ".join(f"{name} {version}" for name, version in sorted(tool_versions().items()))
    lines += ["", f"{cpu_name()}, {arguments.threads} threads, Python {platform.python_version()}; {versions}."]
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        kind, checkpoint, bundle, page, threads, tiles, dtype = sys.argv[2:]
        worker(kind, Path(checkpoint), Path(bundle), Path(page), int(threads), int(tiles), dtype)
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("checkpoint", type=Path)
        parser.add_argument("bundle", type=Path)
        parser.add_argument("--runs", type=int, default=5)
        parser.add_argument("--threads", type=int, default=host.real_cores())
        parser.add_argument("--tiles", type=int, default=4)
        parser.add_argument(
            "--transformers", choices=("float32", "bfloat16", "none"), default="float32", help="its precision, or none"
        )
        main(parser.parse_args())
