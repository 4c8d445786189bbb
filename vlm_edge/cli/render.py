"""Everything that reaches the terminal: results on stdout, notes and errors on stderr. The only module with Rich."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TextIO, cast

from vlm_edge.errors import BadInput


@dataclass
class Verbosity:
    """Set once from the command line: quiet drops notes and progress, verbose adds detail, debug shows tracebacks."""

    quiet: bool = False
    verbose: bool = False
    debug: bool = False


VERBOSITY = Verbosity()


def error(message: str, remedy: str) -> None:
    """The two lines of every error, whatever line breaks its texts hold."""
    _say(f"error: {_one_line(message)}\nfix: {_one_line(remedy)}\n")


def _say(text: str) -> None:
    """To stderr; that nobody can read it (closed, a full disk) is no reason to fail."""
    with suppress(OSError):
        if sys.stderr is not None:
            sys.stderr.write(text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def note(text: str) -> None:
    """A line on stderr, unless --quiet."""
    if not VERBOSITY.quiet:
        _say(text + "\n")


def detail(text: str) -> None:
    """A line on stderr with --verbose only."""
    if VERBOSITY.verbose:
        note(text)


def emit(text: str, *, end: str = "") -> None:
    """A piece of a result on stdout, at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def minutes(seconds: float) -> str:
    """`2:05`."""
    whole, rest = divmod(round(seconds), 60)
    return f"{whole}:{rest:02d}"


def emit_json(value: Mapping[str, Any]) -> None:
    """One JSON object, and nothing else, on stdout."""
    emit(json.dumps(value, ensure_ascii=False), end="\n")


class ReaderGone(Exception):
    """Whoever read standard output has closed it: no failure, but no reason to go on."""


class _Checked:
    """Standard output with errors that say which stream failed; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with _named_failures():
            return self._stream.write(text)

    def flush(self) -> None:
        with _named_failures():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _named_failures() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as cause:
        raise ReaderGone from cause
    except OSError as cause:
        text = f"standard output cannot be written: {cause.strerror or cause}"
        raise BadInput(text, remedy="make room, or send it somewhere else") from cause


@contextmanager
def checked_output() -> Iterator[None]:
    """While it lasts, a write to stdout that fails raises ReaderGone or BadInput, whoever writes.

    Not left to BrokenPipeError: Typer takes that for exit code 1, which here means that the answer is no.
    """
    stream = sys.stdout
    if stream is None:
        raise BadInput("standard output is closed", remedy="leave it open; > /dev/null drops what is written")
    sys.stdout = cast("TextIO", _Checked(stream))
    try:
        yield
    finally:
        sys.stdout = stream


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
    # cells are data: `vlm-edge[cpu]` and `[/x]` are no markup, and `:x:` is no picture
    Console(markup=False, emoji=False, highlight=False).print(shown)


def is_live() -> bool:
    """Whether what is said on stderr can be written over: a terminal, without --quiet."""
    return not VERBOSITY.quiet and sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def progress(title: str, total: int) -> Iterator[Any]:
    """A progress bar on stderr that yields a function to call once a step; silent where stderr is no terminal."""
    if not is_live():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    plain = TextColumn("{task.description}", markup=False)  # the default column takes a title for markup
    with Progress(plain, *Progress.get_default_columns()[1:], console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=total)
        yield lambda: bar.advance(task)


@contextmanager
def layers(title: str, *, lines: bool = True) -> Iterator[Callable[[int, int, str], None]]:
    """Yields a function of (done, total, text): a bar with the text beside it; where stderr is no terminal, lines or nothing."""
    if VERBOSITY.quiet or sys.stderr is None:
        yield lambda _done, _total, _text: None
        return
    if not is_live():
        yield lambda _done, _total, text: note(text) if lines else None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    plain = TextColumn("{task.description}", markup=False)
    with Progress(BarColumn(), plain, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total, text: bar.update(task, completed=done, total=total, description=text)
