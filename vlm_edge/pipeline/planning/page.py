"""A plan as one self-contained HTML page: bars by phase against the budget, every item, advice, and the command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vlm_edge.pipeline import html_page
from vlm_edge.pipeline.html_page import table
from vlm_edge.pipeline.planning.colors import color_of
from vlm_edge.units import format_bytes, format_pair

_WIDTH, _LEFT, _RIGHT, _ROW, _BAR, _TOP = 920, 96, 96, 44, 28, 34


def write_page(plan: Mapping[str, Any], path: Path) -> None:
    """Write the page of a plan, given as `--json` prints it; raises BadInput where it cannot be written."""
    html_page.write(page(plan), path)


def page(plan: Mapping[str, Any]) -> str:
    """The page as text: no script, nothing from elsewhere."""
    title = f"{plan['model']} on {plan['device'] or plan['target']}"
    kind, verdict = ("yes", "Fits") if plan["fits"] else ("no", "Does not fit")
    peak, budget = format_pair(plan["peak_bytes"], plan["budget_bytes"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="verdict"><b class="{kind}">{verdict}.</b> {escape(plan["peak_phase"])} needs {peak} of {budget}.'
        f" {plan['visual_tokens']:,} visual tokens.</p>",
        _bars(plan),
        _forecast(plan.get("latency")),
        _solved(plan.get("solve")),
        _advice(plan["advice"]),
        "<h2>Every part</h2>",
        _items(plan["items"], plan["phases"]),
        "<h2>Making it</h2>",
        table(
            ("step", "peak", "in"),
            [(name, format_bytes(step["peak_bytes"]), step["peak_phase"]) for name, step in plan["steps"].items()],
        ),
        "".join(f'<p class="note">{escape(note)}.</p>' for note in plan["notes"]),
        html_page.made_with(plan["command"]),
    ]
    return html_page.document(title, parts)


def _bars(plan: Mapping[str, Any]) -> str:
    """One bar for each phase, its parts side by side, and the budget as a line across all."""
    phases: Mapping[str, int] = plan["phases"]
    most = max(plan["peak_bytes"], plan["budget_bytes"]) or 1
    span = _WIDTH - _LEFT - _RIGHT
    height = _TOP + _ROW * len(phases)
    shapes = []
    for row, (phase, total) in enumerate(phases.items()):
        y = _TOP + row * _ROW
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + 19}" text-anchor="end">{escape(phase)}</text>')
        start = 0
        for item in _alive(plan["items"], phase):
            x, width = _LEFT + span * start / most, span * item["bytes"] / most
            tip = escape(f"{item['name']}: {format_bytes(item['bytes'])}")
            shapes.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(width, 0.3):.1f}" height="{_BAR}" fill="{color_of(item["name"])}">'
                f"<title>{tip}</title></rect>"
            )
            start += item["bytes"]
        end = _LEFT + span * total / most
        shapes.append(f'<text x="{end + 6:.1f}" y="{y + 19}">{format_bytes(total)}</text>')
    line = _LEFT + span * plan["budget_bytes"] / most
    anchor = "end" if line > _WIDTH / 2 else "start"
    shapes.append(
        f'<line class="no" x1="{line:.1f}" y1="{_TOP - 10}" x2="{line:.1f}" y2="{height}" stroke-width="2" '
        f'stroke-dasharray="6 4"/><text class="no" x="{line:.1f}" y="{_TOP - 16}" text-anchor="{anchor}">'
        f"budget {format_bytes(plan['budget_bytes'])}</text>"
    )
    return html_page.drawing(_WIDTH, height, shapes, "memory by phase against the budget")


def _alive(items: Sequence[Mapping[str, Any]], phase: str) -> list[Mapping[str, Any]]:
    return [item for item in items if phase in item["phases"] and item["memory"] == "device"]


def _items(items: Sequence[Mapping[str, Any]], phases: Mapping[str, int]) -> str:
    rows = []
    for item in sorted(items, key=lambda each: -each["bytes"]):
        alive = "all" if len(item["phases"]) == len(phases) else ", ".join(item["phases"])
        where = "" if item["memory"] == "device" else " (host)"
        key = f'<span class="key" style="background:{color_of(item["name"])}"></span>'
        rows.append(
            f'<tr><td>{key}{escape(item["name"])}{where}</td><td class="n">{format_bytes(item["bytes"])}</td>'
            f"<td>{escape(item['dtype'])}</td><td>{escape(alive)}</td><td>{escape(item['formula'])}</td>"
            f"<td>{escape(item['basis'])}</td></tr>"
        )
    head = "<tr><th>part</th><th>memory</th><th>dtype</th><th>alive in</th><th>how</th><th>basis</th></tr>"
    return f"<table>{head}{''.join(rows)}</table>"


def _forecast(latency: Mapping[str, Any] | None) -> str:
    if latency is None:
        return ""
    return (
        f"<p>Forecast on an idle device: encode {latency['encode_ms']:.0f} ms, prefill of {latency['prompt_tokens']:,} tokens "
        f"{latency['prefill_ms']:.0f} ms, first token after {latency['ttft_ms']:.0f} ms, then "
        f"{latency['ms_per_token']:.1f} ms a token.</p>"
    )


def _solved(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return ""
    beyond = f"; the next step needs {format_bytes(found['next_peak_bytes'])}" if found["next_peak_bytes"] else ""
    return f"<p>Most {escape(found['unknown'])}: <b>{found['answer']:,}</b>, limited by {escape(found['limited_by'])}{beyond}.</p>"


def _advice(advice: Sequence[Mapping[str, Any]]) -> str:
    if not advice:
        return ""
    rows = [(a["change"], format_bytes(a["peak_bytes"]), "yes" if a["fits"] else "no") for a in advice]
    return "<h2>What would help</h2>" + table(("change", "peak", "fits"), rows)
