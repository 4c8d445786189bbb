"""A sweep as a picture: accuracy against visual tokens and against peak memory. Needs matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_edge.pipeline.figure import new_figure, require_matplotlib, save
from vlm_edge.units import MIB

# Okabe and Ito's palette, which colour-blind readers tell apart as well; baselines are grey.
_COLORS = {
    "none": "#000000", "threshold": "#d55e00", "tome": "#0072b2", "landmark": "#009e73", "divprune": "#cc79a7",
    "cdpruner": "#e69f00", "random": "#9aa0a6", "downsample": "#9aa0a6",
}  # fmt: skip
_MARKS = {"auto": "o", "grid": "s", "none": "v", "given": "D"}
_BASELINE_MARKS = {"random": "x", "downsample": "+"}
_WHAT = "a sweep's plot"


def check_drawing() -> None:
    """Raise MissingDependency without matplotlib, before an hour is spent on what cannot be drawn."""
    require_matplotlib(_WHAT)


def draw(report: Mapping[str, Any], path: Path, *, extra: Sequence[tuple[str, float, float]] = ()) -> None:
    """Draw what `eval --sweep --json` prints to a PNG.

    extra: horizontal lines of other baselines, as (label, accuracy share, visual tokens).  Raises MissingDependency, BadInput.
    """
    figure = new_figure(14, 6.6, what=_WHAT)
    left, right = figure.subplots(1, 2, sharey=True)
    points = report["points"]
    _panel(left, points, [point["tokens"]["visual_after_mean"] for point in points], "tokens", report["winner"])
    _panel(right, points, [_peak(point) / MIB for point in points], "memory", report["winner"])
    for name, accuracy, tokens in extra:
        for axes in (left, right):
            axes.axhline(100 * accuracy, color="#666666", linewidth=0.8, linestyle=":")
        left.annotate(f"{name} ({tokens:,.0f} tokens)", (0.99, 100 * accuracy), (0, 2), xycoords=("axes fraction", "data"),
                      textcoords="offset points", ha="right", fontsize=7, color="#444444")  # fmt: skip
    if all(point["tokens"]["visual_after_mean"] > 0 for point in points):
        left.set_xscale("log")
        left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        left.xaxis.set_minor_formatter(lambda value, _: f"{value:,.0f}")
        left.tick_params(axis="x", which="minor", labelsize=7)
    left.set_xlabel("visual tokens in the prompt, mean (log scale)")
    right.set_xlabel("peak memory of the process, MiB")
    left.set_ylabel("right answers, % (bars: 95%)")
    _legend(figure, points)
    figure.suptitle(
        f"{report['title']}: {report['rows']} rows about {report['images']} images, {report['date']}", fontsize=11
    )
    save(figure, path, dpi=110)


def _panel(axes: Any, points: Sequence[Mapping[str, Any]], at: Sequence[float], front: str, winner: str) -> None:
    for point, x in zip(points, at, strict=True):
        color, mark = style(point)
        score = point["overall"]
        y, (low, high) = 100 * score["accuracy"], (100 * share for share in score["interval_95"])
        axes.errorbar(x, y, [[max(0.0, y - low)], [max(0.0, high - y)]], color=color, marker=mark, markersize=7, elinewidth=0.7,
                      markerfacecolor="none" if point["own_tiles"] else color, alpha=0.9)  # fmt: skip
        if point["label"] == winner:
            axes.plot(x, y, "o", markersize=16, markerfacecolor="none", markeredgecolor="#d00000", markeredgewidth=1.6)
    line = sorted(
        (x, 100 * point["overall"]["accuracy"]) for point, x in zip(points, at, strict=True) if point["pareto"][front]
    )
    axes.step([x for x, _ in line], [y for _, y in line], where="post", color="#d00000", linewidth=0.9, alpha=0.6)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def style(point: Mapping[str, Any]) -> tuple[str, str]:
    """Colour by reduction, mark by tiling; baselines of reduction have marks of their own."""
    look = point["look"]
    reduce = look["reduce"]
    tiling = look["tiling"]
    if point["own_tiles"]:
        tiling = "given"
    elif look["max_tiles"] == 0 and tiling != "grid":
        tiling = "none"
    return _COLORS.get(reduce, "#56b4e9"), _BASELINE_MARKS.get(reduce, _MARKS.get(tiling, "o"))


def _peak(point: Mapping[str, Any]) -> int:
    memory = point["memory"]
    return int(memory["own_process_peak_bytes"] or memory["planned_peak_bytes"])


def _legend(figure: Any, points: Sequence[Mapping[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    shown = {point["look"]["reduce"]: style(point) for point in points}
    handles = [
        Line2D([], [], color=color, marker=_BASELINE_MARKS.get(name, "o"), linestyle="", label=name)
        for name, (color, _) in shown.items()
    ]
    tilings = {"salient tiles": "o", "tiles in grid order": "s", "global view only": "v"}
    handles += [
        Line2D([], [], color="#444444", marker=mark, linestyle="", label=name) for name, mark in tilings.items()
    ]
    if any(point["own_tiles"] for point in points):
        handles.append(
            Line2D([], [], color="#444444", marker="D", markerfacecolor="none", linestyle="", label="own tiles")
        )
    handles.append(Line2D([], [], color="#d00000", label="front; circle: winner"))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
