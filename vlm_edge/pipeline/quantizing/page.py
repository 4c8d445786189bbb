"""reports/quantize.json as one self-contained HTML page: what each layer lost, what it was calibrated on, and with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vlm_edge.pipeline import html_page
from vlm_edge.pipeline.html_page import table
from vlm_edge.pipeline.quantizing.plot import plot, short
from vlm_edge.units import format_bytes

_COUNTS = {
    "read": "samples read",
    "given": "sequences given",
    "used": "used",
    "with_image": "with an image",
    "cut": "cut at the longest sequence",
    "tokens_cut": "tokens cut off",
    "tokens": "tokens",
    "sequences": "sequences",
    "held_out": "of them held out",
}
_SKIPPED = "skipped_"
_GATES = {
    "bit_exact": "written weights read back bit by bit as they were searched",
    "kl_no_worse_than_rtn": "held-out KL no worse than that of plain rounding",
}
Report = Mapping[str, Any]


def page(report: Report) -> str:
    """The page as text, from the report as reports/quantize.json holds it."""
    options = report["options"]
    title = f"{report['model']}: {report['architecture']}, {options['bits']} bits, groups of {options['group_size']}"
    drawn = plot(report["layers"])
    parts = [
        f"<h1>{escape(title)}</h1>",
        _verdict(report),
        f"<h2>By layer</h2>{drawn}" if drawn else "",
        _layers(report["layers"]) if drawn else "",
        _pairs("Calibration", _calibration(report["calibration"])) if drawn else "",
        _pairs("Memory and time", _cost(report)),
        _pairs("Gates", {_GATES.get(name, name): passed for name, passed in report["gates"].items()}),
        _pairs("Options", options),
        _pairs("Versions", report["versions"]),
        html_page.made_with(report["command"]) if report.get("command") else "",
    ]
    return html_page.document(title, parts)


def _verdict(report: Report) -> str:
    held = report["held_out"]
    if held is None:
        return (
            '<p class="verdict">Rounded to nearest, without calibration: nothing was compared with the fp32 model.</p>'
        )
    kind = "yes" if held["kl"] <= held["plain_kl"] else "no"
    return (
        f'<p class="verdict">KL to the fp32 model over {held["tokens"]:,} held-out tokens: <b class="{kind}">'
        f"{held['kl']:.4g} nats</b>; plain rounding (RTN) {held['plain_kl']:.4g}.</p>"
        f'<p class="note">The likeliest token is the same for {held["agreement"]:.1%} of them; with RTN for '
        f"{held['plain_agreement']:.1%}.</p>"
    )


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    columns = ("layer", "RTN", "AWQ", "AWQ / RTN", "ratio", "groups clipped", "s")
    rows = []
    for layer in layers:
        plain, own = layer["plain_error"], layer["error"]
        rows.append(
            (
                str(layer["index"]), _figure(plain), _figure(own), f"{own / plain:.3f}" if own is not None and plain else "-",
                "; ".join(f"{short(p['linears'])} {_ratio(p['ratio'])}" for p in layer["pairs"]),
                "; ".join(f"{short([name])} {share:.0%}" for name, share in (layer["clip_share"] or {}).items()),
                f"{layer['seconds']:.1f}",
            )
        )  # fmt: skip
    return table(columns, rows, numbers=(0, 1, 2, 3, 6))


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"


def _calibration(counts: Mapping[str, int]) -> dict[str, int]:
    """Every count: those with words of their own in their order, then what was skipped and why, then any other."""
    if "read" in counts:
        counts = {"cut": 0, **counts}
    known = {words: counts[name] for name, words in _COUNTS.items() if name in counts}
    skipped = {
        f"skipped: {name.removeprefix(_SKIPPED).replace('_', ' ')}": number
        for name, number in counts.items()
        if name.startswith(_SKIPPED)
    }
    if not skipped and "read" in counts:
        skipped = {"skipped": 0}
    other = {name: n for name, n in counts.items() if name not in _COUNTS and not name.startswith(_SKIPPED)}
    return {**known, **skipped, **other}


def _cost(report: Report) -> dict[str, Any]:
    memory = report["memory"]
    limit = memory["limit_bytes"]
    return {
        "peak of the process": format_bytes(memory["peak_bytes"]),
        "planned": format_bytes(memory["planned_bytes"]),
        "least that works": format_bytes(memory["least_bytes"]),
        "limit": "none" if limit is None else format_bytes(limit),
        "hidden states in": memory["hidden_states"],
        "time": f"{report['seconds']:.1f} s",
        "layers finished by an earlier run": report["resumed_layers"],
        "device": report["device"],
        "threads": report["threads"],
    }


def _pairs(title: str, rows: Mapping[str, Any]) -> str:
    return f"<h2>{escape(title)}</h2>" + table(
        ("what", "value"), [(name, _told(value)) for name, value in rows.items()]
    )


def _told(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)
