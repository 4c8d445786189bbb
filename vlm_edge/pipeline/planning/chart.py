"""A plan as a picture: stacked bars by phase against the budget. Needs matplotlib, the `report` extra."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_edge.pipeline.figure import new_figure, save
from vlm_edge.pipeline.planning.colors import BUDGET, color_of
from vlm_edge.units import GIB, MIB, format_bytes

_LABEL_SHARE = 0.01
"""Parts below this share of the widest bar stay out of the legend."""


def draw_chart(plan: Mapping[str, Any], path: Path) -> None:
    """Draw a plan, given as `--json` prints it, to a PNG.

    Raises MissingDependency without matplotlib, BadInput where the file cannot be written.
    """
    phases: Mapping[str, int] = plan["phases"]
    most = max(plan["peak_bytes"], plan["budget_bytes"]) or 1
    unit, word = (GIB, "GiB") if most >= GIB else (MIB, "MiB")
    figure = new_figure(11, 1.8 + 0.6 * len(phases), what="--png")
    axes = figure.subplots()
    names = list(phases)
    starts = dict.fromkeys(names, 0.0)
    for item in plan["items"]:
        if item["memory"] != "device":
            continue
        alive = [name for name in names if name in item["phases"]]
        size = item["bytes"] / unit
        label = f"{item['name']}  {format_bytes(item['bytes'])}" if item["bytes"] >= _LABEL_SHARE * most else None
        axes.barh(
            alive, [size] * len(alive), left=[starts[name] for name in alive], color=color_of(item["name"]),
            edgecolor="white", linewidth=0.4, label=label,
        )  # fmt: skip
        for name in alive:
            starts[name] += size
    for name in names:
        axes.annotate(
            format_bytes(phases[name]), (starts[name], name), (4, 0), textcoords="offset points", va="center", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )  # fmt: skip
    budget = plan["budget_bytes"] / unit
    axes.axvline(budget, color=BUDGET, linestyle="--")
    axes.annotate(f"budget {format_bytes(plan['budget_bytes'])}", (budget, 1), (-4, 4), xycoords=("data", "axes fraction"),
                  textcoords="offset points", ha="right" if 2 * budget > most / unit else "left", color=BUDGET)  # fmt: skip
    axes.set_xlim(0, most / unit * 1.12)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(word)
    verdict = "fits" if plan["fits"] else "does not fit"
    axes.set_title(f"{plan['model']} on {plan['device'] or plan['target']}: {verdict}", loc="left", pad=18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9)
    save(figure, path)
