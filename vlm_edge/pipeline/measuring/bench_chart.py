"""A bench as a picture: what happens before the first token, decode against bandwidth, and memory. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edge.pipeline.figure import new_figure, require_matplotlib, save
from vlm_edge.pipeline.written import check_output
from vlm_edge.units import GIB, format_bytes

# Okabe and Ito's palette, which colour-blind readers tell apart as well.
COLORS = {
    "load": "#9aa0a6", "preprocess": "#e69f00", "saliency": "#f0e442", "vision": "#d55e00", "reduce": "#cc79a7",
    "prefill": "#0072b2", "rest": "#c4c7cb",
}  # fmt: skip
_DARK_TEXT_ON = ("load", "preprocess", "saliency", "rest")
_LEAST_LABEL_SHARE = 0.06


def check_drawing(path: Path) -> None:
    """Raise MissingDependency without matplotlib and BadInput for a bad name, before minutes are spent."""
    check_output(path, (".png",))
    require_matplotlib("--png")


def draw(bench: Mapping[str, Any], path: Path) -> None:
    """Draw what `bench --json` prints to a PNG; raises MissingDependency or BadInput."""
    figure = new_figure(10, 7.4, what="--png")
    first, token, memory = figure.subplots(3, 1, height_ratios=[1.5, 1, 1])
    _first_token(first, bench)
    _tokens(token, bench)
    _memory(memory, bench)
    for axes in (first, token, memory):
        axes.spines[["top", "right"]].set_visible(False)
    tokens, px = bench["tokens"], bench["image_px"]
    figure.suptitle(
        f"{bench['model']} on {bench['device']} ({bench['threads']} threads): LLM {bench['llm_precision']}, vision "
        f"{bench['vision_precision']}, image {px[0]} x {px[1]} px,\n{tokens['visual_before']} -> {tokens['visual_after']} visual "
        f"tokens, {tokens['prefill']} in the prompt; {bench['machine']['cpu']}, {bench['date']}",
        fontsize=11,
    )
    save(figure, path)


def stage_parts(bench: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Milliseconds by stage of a bar for the cold first image and one for the median of warm ones.

    rest: what lies between the stages, so that a bar is as long as its time to the first token (and loading, when cold).
    """
    cold = {name: bench["cold_ms"][name] for name in COLORS if name in bench["cold_ms"]}
    warm = {name: bench["warm_ms"][name]["median"] for name in COLORS if name in bench["warm_ms"]}
    cold["rest"] = max(0.0, bench["cold_ms"]["ttft"] + cold["load"] - sum(cold.values()))
    warm["rest"] = max(0.0, bench["warm_ms"]["ttft"]["median"] - sum(warm.values()))
    return {"first image\nof the process": cold, "further image": warm}


def _first_token(axes: Any, bench: Mapping[str, Any]) -> None:
    bars = stage_parts(bench)
    widest = max(sum(parts.values()) for parts in bars.values())
    for bar, parts in bars.items():
        start = 0.0
        for name, value in parts.items():
            axes.barh(bar, value, left=start, color=COLORS[name], edgecolor="white", linewidth=0.5)
            if value > _LEAST_LABEL_SHARE * widest:
                axes.text(start + value / 2, bar, f"{value:.0f}", ha="center", va="center", fontsize=9,
                          color="black" if name in _DARK_TEXT_ON else "white")  # fmt: skip
            start += value
        axes.text(start, bar, f" {start:.0f} ms", ha="left", va="center")
    least, most = (bench["warm_ms"]["ttft"][key] for key in ("min", "max"))
    axes.errorbar((least + most) / 2, 1.32, xerr=(most - least) / 2, color="black", capsize=3, linewidth=1)
    for name, color in COLORS.items():
        axes.bar(0, 0, color=color, label=name)
    axes.set_xlim(0, widest * 1.12)
    axes.set_ylim(1.6, -0.6)
    axes.set_title(
        "Until the first token, ms; the line spans the least and the most of the further images",
        loc="left",
        fontsize=10,
    )
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)


def _tokens(axes: Any, bench: Mapping[str, Any]) -> None:
    spread, traffic = bench["warm_ms"]["per_token"], bench["bandwidth"]
    axes.plot(spread["values"], [0] * len(spread["values"]), "o", color=COLORS["prefill"], alpha=0.6)
    axes.plot([spread["median"]], [0], "|", color="black", markersize=28)
    ends = [0.0, max(spread["values"]) * 1.15]
    told = f"{bench['tokens_per_s']:.1f} tok/s, {format_bytes(traffic['bytes_per_token'])} read a token"
    if traffic["measured_bytes_per_s"]:
        floor = 1000 * traffic["bytes_per_token"] / traffic["measured_bytes_per_s"]
        axes.axvline(floor, color=COLORS["vision"], linestyle="--")
        rate = traffic["measured_bytes_per_s"] / GIB
        axes.annotate(f"memory's limit ({rate:.1f} GiB/s)", (floor, 0.62), (4, 0), textcoords="offset points",
                      color=COLORS["vision"], fontsize=9, va="center")  # fmt: skip
        told += (
            f", {100 * traffic['share']:.0f}% of memory bandwidth" + "; the caches hold all of it" * traffic["in_cache"]
        )
        ends[1] = max(ends[1], floor * 1.3)
    axes.set_xlim(*ends)
    axes.set_ylim(-1, 1)
    axes.set_yticks([])
    axes.set_title(f"Each further token, ms: {told}", loc="left", fontsize=10)


def _memory(axes: Any, bench: Mapping[str, Any]) -> None:
    sizes = {"measured": bench["memory"]["measured_peak_bytes"], "planned": bench["memory"]["planned_peak_bytes"]}
    most = max(sizes.values())
    for (name, size), color in zip(sizes.items(), (COLORS["prefill"], COLORS["rest"]), strict=True):
        axes.barh(name, size / most, color=color)
        axes.text(size / most, name, f" {format_bytes(size)}", va="center")
    axes.set_xlim(0, 1.12)
    axes.set_xticks([])
    axes.set_title("Peak memory of the process", loc="left", fontsize=10)
