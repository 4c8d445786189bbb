"""What quantizing did to each layer, as an inline SVG: losses of RTN and AWQ, chosen ratios, shares of clipped groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from vlm_edge.pipeline.html_page import drawing

RTN, AWQ = "#d9762b", "#2f7fd1"
PALETTE = ("#2f7fd1", "#d9762b", "#2e9e6b", "#a66bc9", "#b8902a", "#3fa3b3", "#cf5a93")
"""Of middle brightness, so that each can be told from white and from black."""
_WIDTH, _LEFT, _RIGHT = 920, 64, 16
_TITLE, _FOOT = 48, 34
_RADII, _MOST_TICKS = (1.8, 3.5), 20
Layer = Mapping[str, Any]
Scale = Callable[[float], float]


@dataclass(frozen=True)
class Series:
    """values: by layer; None where there is none.  hollow: layers whose dot is a ring.  line: joined by a line."""

    name: str
    color: str
    values: Sequence[float | None]
    line: bool = True
    hollow: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Panel:
    """title: what is shown.  ticks: values at grid lines with their labels; the first is at the bottom, the last at the top.

    log: distances are those of logarithms.
    """

    title: str
    series: Sequence[Series]
    ticks: Sequence[tuple[float, str]]
    height: int
    log: bool = False


def plot(layers: Sequence[Layer]) -> str:
    """The panels that these layers' reports have data for, one above another; empty without calibration.

    layers: `layers` of reports/quantize.json.
    """
    panels = [panel for panel in (_losses(layers), _searches(layers), _ratios(layers), _clips(layers)) if panel]
    if not panels:
        return ""
    indices = [layer["index"] for layer in layers]
    shapes: list[str] = []
    top = 0.0
    for panel in panels:
        shapes += ["<g>", *_drawn(panel, indices, top + _TITLE), "</g>"]
        top += _TITLE + panel.height + _FOOT
    return drawing(_WIDTH, top, shapes, "by layer: " + "; ".join(panel.title for panel in panels))


def short(linears: Sequence[str]) -> str:
    """`self_attn.q_proj`, `self_attn.k_proj` -> `q, k`."""
    return ", ".join(name.rpartition(".")[2].removesuffix("_proj") for name in linears)


def _losses(layers: Sequence[Layer]) -> Panel | None:
    plain, own = ([layer[key] for layer in layers] for key in ("plain_error", "error"))
    found = [value for value in (*plain, *own) if value is not None]
    values = [value for value in found if value]
    if not values:
        return None
    # What is exactly 0 has no logarithm; it lies on the lowest line, which is then below all else.
    ticks = _decades(min(values) / (1 if all(found) else 10), max(values))
    title = "Loss: squared error of held-out hidden states behind the layer, of the fp32 model's squares"
    series = [
        Series(name, color, [None if v is None else max(v, ticks[0][0]) for v in given])
        for name, color, given in (("RTN", RTN, plain), ("AWQ", AWQ, own))
    ]
    return Panel(title, series, ticks, 180, log=True)


def _searches(layers: Sequence[Layer]) -> Panel | None:
    def share(pair: Mapping[str, Any]) -> float | None:
        return pair["loss"] / pair["plain_loss"] if pair["plain_loss"] else None

    series = _by_pair(layers, share)
    return Panel("Search: loss at the chosen scales, of RTN's", series, _shares(series), 130) if series else None


def _ratios(layers: Sequence[Layer]) -> Panel | None:
    series = _by_pair(layers, lambda pair: pair["ratio"] or 0.0, lambda pair: pair["ratio"] is None)
    ticks = [(value, f"{value:g}") for value in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return Panel("Chosen ratio; a ring where no scales were better than none", series, ticks, 130) if series else None


def _clips(layers: Sequence[Layer]) -> Panel | None:
    names = list(dict.fromkeys(name for layer in layers for name in layer["clip_share"] or {}))
    series = [
        Series(
            short([name]),
            _colors(layers)[short([name])],
            [(layer["clip_share"] or {}).get(name) for layer in layers],
            line=False,
        )
        for name in names
    ]
    return Panel("Clips: share of groups whose outliers were cut", series, _shares(series), 130) if series else None


def _by_pair(
    layers: Sequence[Layer], value: Callable[[Mapping[str, Any]], float | None],
    hollow: Callable[[Mapping[str, Any]], bool] = lambda _: False,
) -> list[Series]:  # fmt: skip
    """A series for each group of linear layers that share an input."""
    found: dict[str, dict[int, Mapping[str, Any]]] = {}
    for place, layer in enumerate(layers):
        for pair in layer["pairs"]:
            found.setdefault(short(pair["linears"]), {})[place] = pair
    return [
        Series(
            name, _colors(layers)[name], [value(pairs[place]) if place in pairs else None for place in range(len(layers))],
            line=False, hollow=frozenset(place for place, pair in pairs.items() if hollow(pair)),
        )
        for name, pairs in found.items()
    ]  # fmt: skip


def _colors(layers: Sequence[Layer]) -> dict[str, str]:
    """One for each name, the same in every panel: first for those that share an input, then for linear layers by themselves."""
    names = [short(pair["linears"]) for layer in layers for pair in layer["pairs"]]
    names += [short([name]) for layer in layers for name in layer["clip_share"] or {}]
    return {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(dict.fromkeys(names))}


def _decades(least: float, most: float) -> list[tuple[float, str]]:
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    high = max(high, low + 1)
    step = max(1, -(-(high - low) // 6))
    powers = range(low, high + step, step)
    return [(10.0**power, f"1e{power}") for power in powers]


def _shares(series: Sequence[Series]) -> list[tuple[float, str]]:
    """From 0 to 100%, or as far beyond as the values reach."""
    most = max((value for one in series for value in one.values if value is not None), default=1.0)
    step = 0.25 * max(1, math.ceil(most))
    return [(step * i, f"{100 * step * i:.0f}%") for i in range(5)]


def _drawn(panel: Panel, indices: Sequence[int], top: float) -> list[str]:
    """Title, legend, grid, dots and lines; `top`: where the highest grid line lies."""
    bottom = top + panel.height
    y = _scale([value for value, _ in panel.ticks], top, bottom, log=panel.log)
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(indices))
    x = [_LEFT + (place + 0.5) * step for place in range(len(indices))]
    shapes = [f'<text x="0" y="{top - 30:.1f}" font-weight="600">{escape(panel.title)}</text>', *_legend(panel, top)]
    for value, label in panel.ticks:
        shapes.append(f'<line x1="{_LEFT}" y1="{y(value):.1f}" x2="{_WIDTH - _RIGHT}" y2="{y(value):.1f}"/>')
        shapes.append(f'<text class="note" x="{_LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{label}</text>')
    every = -(-len(indices) // _MOST_TICKS)
    for place in range(0, len(indices), every):
        shapes.append(
            f'<text class="note" x="{x[place]:.1f}" y="{bottom + 18:.1f}" text-anchor="middle">{indices[place]}</text>'
        )
    shapes.append(f'<text class="note" x="0" y="{bottom + 18:.1f}">layer</text>')
    # Dots of one layer stand side by side, within its share of the width.
    apart = 0.0 if any(one.line for one in panel.series) else min(12.0, 0.6 * step / max(1, len(panel.series)))
    radius = max(_RADII[0], min(_RADII[1], 0.2 * step))
    for number, one in enumerate(panel.series):
        shift = apart * (number - (len(panel.series) - 1) / 2)
        points = [
            (x[place] + shift, y(value), place, value) for place, value in enumerate(one.values) if value is not None
        ]
        if one.line and len(points) > 1:
            path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in points)
            shapes.append(f'<polyline points="{path}" fill="none" stroke="{one.color}" stroke-width="1.5"/>')
        for px, py, place, value in points:
            inside = "none" if place in one.hollow else one.color
            shapes.append(
                f'<circle cx="{px:.1f}" cy="{py:.1f}" r="{radius:.1f}" fill="{inside}" stroke="{one.color}" stroke-width="1.5">'
                f"<title>layer {indices[place]}, {escape(one.name)}: {value:.4g}</title></circle>"
            )
    return shapes


def _legend(panel: Panel, top: float) -> list[str]:
    shapes, x = [], float(_LEFT)
    for one in panel.series:
        shapes.append(f'<rect x="{x:.1f}" y="{top - 19:.1f}" width="10" height="10" rx="2" fill="{one.color}"/>')
        shapes.append(f'<text x="{x + 15:.1f}" y="{top - 10:.1f}">{escape(one.name)}</text>')
        x += 34 + 7.5 * len(one.name)
    return shapes


def _scale(ticks: Sequence[float], top: float, bottom: float, *, log: bool) -> Scale:
    place: Scale = math.log10 if log else float
    low, high = place(ticks[0]), place(ticks[-1])
    return lambda value: bottom - (bottom - top) * (place(value) - low) / (high - low)
