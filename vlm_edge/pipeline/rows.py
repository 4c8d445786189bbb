"""Data files of `eval`: one JSON object a line going in, and a log of outcomes that a second run continues."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from vlm_edge.core.load import parse, to_plain
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.metrics import RowOutcome, boxes_of
from vlm_edge.pipeline.options import AskOptions, Box

T = TypeVar("T")
_FORM = 'one object a line: {"image": "page.png", "question": "what is the total?", "answer": "12.50"}'
_HEAD = b'{"id": "'
"""How every line of an outcome log begins: what tells a line cut short from a file that is something else."""


@dataclass(frozen=True)
class EvalRow:
    """One question with its true answer.

    image: path relative to the data file.  task, stratum: what to count it under.  tiles: boxes (x0, y0, x1, y1) in
    source pixels that `--tiles-from-data` shows beside the global view; empty for the global view alone.
    """

    image: str
    question: str
    answer: str
    task: str = ""
    tiles: tuple[Box, ...] | None = None
    stratum: tuple[str, ...] = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


def read_rows(path: Path, *, limit: int | None = None, need_tiles: bool = False) -> tuple[EvalRow, ...]:
    """All rows of a JSON Lines file, or the first `limit`; blank lines are passed over.

    need_tiles: a row without `tiles` is an error.  Raises BadInput with file and line for the first bad line.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit {limit} is not allowed", remedy="use 1 or more")
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise BadInput(f"{path} cannot be read: {cause}", remedy="name a JSON Lines file in UTF-8") from cause
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()][:limit]
    if not lines:
        raise BadInput(f"{path} holds no rows", remedy=f"write {_FORM}")
    rows = _parse_lines(lines, EvalRow, path)
    for (number, _), row in zip(lines, rows, strict=True):
        _check(row, f"{path}:{number}", need_tiles=need_tiles)
    return rows


def _parse_lines(lines: Sequence[tuple[int, str]], kind: type[T], path: Path) -> tuple[T, ...]:
    """Numbered lines -> records, validated in one go, which is far faster than line by line."""
    found: list[Any] = []
    for number, line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError) as cause:
            raise BadInput(f"{path}:{number}: not valid JSON: {cause}", remedy=f"write {_FORM}") from cause
    try:
        return parse(found, cast("type[tuple[T, ...]]", types.GenericAlias(tuple, (kind, ...))), str(path))
    except BadInput:
        for (number, _), data in zip(lines, found, strict=True):
            parse(data, kind, f"{path}:{number}")
        raise


def _check(row: EvalRow, where: str, *, need_tiles: bool) -> None:
    for name, value in (("image", row.image), ("question", row.question)):
        if not value.strip():
            raise BadInput(f"{where}: {name} is empty", remedy="fill it in, or leave the row out")
    if boxes_of(row.answer) is None:
        raise BadInput(f"{where}: the answer holds a damaged box", remedy="write <box>x0,y0,x1,y1</box> in thousandths")
    if need_tiles and row.tiles is None:
        raise BadInput(f"{where}: the row has no tiles", remedy="add them, or leave out --tiles-from-data")
    try:
        AskOptions(tiles=row.tiles)
    except BadInput as cause:
        raise BadInput(f"{where}: {cause.message}", remedy=cause.remedy) from cause


def row_hash(row: EvalRow) -> str:
    """BLAKE2b, hex, of everything in a row."""
    return digest(to_plain(row))


def digest(value: Any) -> str:
    """BLAKE2b of 16 bytes, hex, of plain data."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=16).hexdigest()


class OutcomeLog:
    """Outcomes by id; with a file, those of earlier runs too, and each new one is appended to it at once.

    A last line that was cut short by a kill is dropped. Raises BadInput for a file that is no such log.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known: dict[str, RowOutcome] = {}
        if path is not None:
            self._open(path)

    def _open(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = path.read_bytes() if path.exists() else b""
        except OSError as cause:
            raise _unusable(path, cause) from cause
        whole, newline, tail = content.rpartition(b"\n")
        cut_short = _is_cut_short(tail)
        try:
            text = (whole if cut_short else content).decode("utf-8")
        except UnicodeDecodeError as cause:
            raise BadInput(f"{path} is no log of outcomes: {cause}", remedy="name another --out") from cause
        lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line]
        try:
            outcomes = _parse_lines(lines, RowOutcome, path)
        except BadInput as cause:
            raise BadInput(f"{cause.message} (not a log of outcomes)", remedy="name another --out") from cause
        self._known = {outcome.id: outcome for outcome in outcomes if not outcome.error}
        try:
            with path.open("ab") as stream:
                if cut_short:
                    stream.truncate(len(whole) + len(newline))
                elif tail:
                    stream.write(b"\n")
        except OSError as cause:
            raise _unusable(path, cause) from cause

    def get(self, identity: str) -> RowOutcome | None:
        """The outcome with that id; rows that ended in an error are not remembered, so that they are tried again."""
        return self._known.get(identity)

    def add(self, outcome: RowOutcome) -> None:
        """Remember an outcome and append it to the file."""
        if not outcome.error:
            self._known[outcome.id] = outcome
        if self._path is None:
            return
        line = json.dumps(to_plain(outcome), ensure_ascii=False) + "\n"
        try:
            with self._path.open("ab") as stream:
                stream.write(line.encode())
        except OSError as cause:
            raise _unusable(self._path, cause) from cause


def _is_cut_short(tail: bytes) -> bool:
    """Whether what stands after the last line break is the beginning of an outcome, rather than something else."""
    if not tail or not (tail.startswith(_HEAD) or _HEAD.startswith(tail)):
        return False
    try:
        json.loads(tail)
    except ValueError:
        return True
    return False


def _unusable(path: Path, cause: OSError) -> BadInput:
    return BadInput(f"{path} cannot be written: {cause}", remedy="name another --out, or make room for it")
