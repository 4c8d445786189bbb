"""What the HTML reports have in common: one self-contained page, without script, that can be read on light and on dark screens."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape
from pathlib import Path

from vlm_edge.pipeline.written import written

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #ffffff; --line: #dfe2e6; --soft: #f3f4f6; --note: #57606a;
  --yes: #1a7f37; --no: #c1121f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e6ea; --paper: #15181c; --line: #363c44; --soft: #24292f;
  --note: #9aa4af; --yes: #4cc26b; --no: #ff6b6b; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 960px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { font-size: 1.1rem; } .yes { color: var(--yes); } .no { color: var(--no); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { text-align: left; padding: .3rem .5rem; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child:nth-last-child(2) { width: 50%; }
td.n, th.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.key { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border-radius: 2px; }
code { background: var(--soft); padding: .15rem .3rem; border-radius: 3px; overflow-wrap: anywhere; }
.note { color: var(--note); font-size: 13px; }
svg { width: 100%; height: auto; fill: currentColor; } svg .no { fill: var(--no); stroke: none; } svg line { stroke: var(--line); }
svg line.no { stroke: var(--no); } svg .note { fill: var(--note); }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """The page as text: nothing from elsewhere. title: plain text.  parts: HTML; empty ones are left out."""
    body = "\n".join(part for part in parts if part)
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{body}\n</body></html>\n'


def drawing(width: float, height: float, shapes: Sequence[str], what: str) -> str:
    """An inline SVG.  what: the picture in words, for those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(what)}" font-size="13" '
        f'font-family="system-ui, sans-serif">{"".join(shapes)}</svg>'
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[int] = ()) -> str:
    """Plain text in cells.  numbers: columns that stand to the right."""
    right = [' class="n"' if index in numbers else "" for index in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(column)}</th>" for kind, column in zip(right, columns, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(right, row, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def made_with(command: str) -> str:
    """The command that made the page."""
    return f"<h2>Made with</h2><p><code>{escape(command)}</code></p>"


def write(text: str, path: Path) -> None:
    """Write a page; raises BadInput where it cannot be written."""
    with written(path) as stream:
        stream.write(text.encode())
