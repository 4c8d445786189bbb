"""Everything that reaches the terminal: results on stdout, notes and errors on stderr. The only module with Rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Verbosity:
    """Set once from the command line: quiet drops notes and progress, verbose adds detail, debug shows tracebacks."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


VERBOSITY = Verbosity()


def error(message: str, remedy: str) -> None:
    """The two lines of every error, whatever line breaks its texts hold."""
    sys.stderr.write(f"error: {_one_line(message)}\nfix: {_one_line(remedy)}\n")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def note(text: str) -> None:
    """A line on stderr, unless --quiet."""
    if not VERBOSITY.quiet:
        sys.stderr.write(text + "\n")


def detail(text: str) -> None:
    """A line on stderr with --verbose only."""
    if VERBOSITY.verbose:
        note(text)


def emit(text: str, *, end: str = "") -> None:
    """A piece of a result on stdout, at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout."""
    emit(json.dumps(value, ensure_ascii=False), end="\n")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout; plain columns where stdout is no terminal."""
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [columns, *rows]
        ]
        emit("\n".join([title, *(line.rstrip() for line in lines)]), end="\n")
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(*columns, title=title, title_justify="left")
    for row in rows:
        shown.add_row(*row)
    Console().print(shown)


@contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """A progress bar on stderr that yields a function to call once a step; silent where stderr is no terminal."""
    if VERBOSITY.quiet or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)
