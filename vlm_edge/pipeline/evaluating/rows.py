"""Data files of `eval`: one JSON object a line going in, and a log of outcomes that a second run continues."""

from __future__ import annotations

import hashlib
import json
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

from vlm_edge.core.layout import Box
from vlm_edge.core.load import OMIT_DEFAULT, parse, to_plain
from vlm_edge.core.resources import nearest
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.evaluating.metrics import METRICS, RowOutcome, boxes_of

T = TypeVar("T")
_FORM = 'one object a line: {"image": "page.png", "question": "what is the total?", "answer": "12.50"}'
_HEAD = b'{"id": "'
"""How every line of an outcome log begins: what tells a line cut short from a file that is something else."""


@dataclass(frozen=True)
class EvalRow:
    """One question with its true answer.

    image: path relative to the data file; images: several of them in its place.  answer: the true one; answers: all that
    are accepted, in its place.  task, stratum: what to count it under.  tiles: boxes (x0, y0, x1, y1) in source pixels that
    `--tiles-from-data` shows beside the global view; empty for the global view alone.  metric: by what a text is right, one of
    METRICS.  box: in source pixels, where the first box of the answer has to be, in place of a text.
    """

    image: str = ""
    question: str = ""
    answer: str | None = None
    task: str = ""
    tiles: tuple[Box, ...] | None = None
    stratum: tuple[str, ...] = ()
    images: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)
    answers: tuple[str, ...] = field(default=(), metadata=OMIT_DEFAULT)
    metric: str = field(default="exact", metadata=OMIT_DEFAULT)
    box: Box | None = field(default=None, metadata=OMIT_DEFAULT)
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    @property
    def paths(self) -> tuple[str, ...]:
        """Every image, relative to the data file."""
        return self.images or (self.image,)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Every answer that is right."""
        return self.answers or (self.answer or "",)


@dataclass(frozen=True)
class BadLine:
    """A line of a data file that is no row, and why."""

    number: int
    problem: str


def read_rows(
    path: Path,
    *,
    limit: int | None = None,
    need_tiles: bool = False,
    on_bad: Callable[[BadLine], None] | None = None,
) -> tuple[EvalRow, ...]:
    """All rows of a JSON Lines file, or the first `limit`; blank lines are passed over.

    need_tiles: a row without `tiles` is an error.  on_bad: told of each bad line, which is then passed over; without it the
    first one is raised as BadInput with file and line.  Raises BadInput where no row is left.
    """
    if limit is not None and limit < 1:
        raise BadInput(f"--limit {limit} is not allowed", remedy="use 1 or more")
    try:
        content = path.read_bytes()
    except OSError as cause:
        raise BadInput(f"{path} cannot be read: {cause}", remedy="name a JSON Lines file in UTF-8") from cause
    lines = [(number, line) for number, line in enumerate(content.split(b"\n"), start=1) if line.strip()]
    if not lines:
        raise BadInput(f"{path} holds no rows", remedy=f"write {_FORM}")
    if on_bad is None:
        return _good_rows(lines[:limit], path, need_tiles=need_tiles)
    rows: list[EvalRow] = []
    for line in lines:
        if len(rows) == limit:
            break
        try:
            rows += _good_rows([line], path, need_tiles=need_tiles)
        except BadInput as bad:
            on_bad(BadLine(line[0], bad.message.removeprefix(f"{path}:{line[0]}: ")))
    if not rows:
        raise BadInput(
            f"{path} holds no row that can be asked", remedy="mend the lines, or see them without --keep-going"
        )
    return tuple(rows)


def _good_rows(lines: Sequence[tuple[int, bytes]], path: Path, *, need_tiles: bool) -> tuple[EvalRow, ...]:
    """Raises BadInput for the first line that is no row."""
    texts: list[tuple[int, str]] = []
    undecoded: BadInput | None = None
    for number, line in lines:
        try:
            texts.append((number, line.decode("utf-8")))
        except UnicodeDecodeError as cause:
            undecoded = BadInput(f"{path}:{number}: not UTF-8: {cause.reason}", remedy="save the file in UTF-8")
            break
    rows = _parse_lines(texts, EvalRow, path)
    for (number, _), row in zip(texts, rows, strict=True):
        _check(row, f"{path}:{number}", need_tiles=need_tiles)
    if undecoded is not None:  # a line before it that is no row would be the first to mend
        raise undecoded
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
    if row.image and row.images:
        raise BadInput(f"{where}: both image and images are given", remedy="use one of them")
    named = {"question": row.question} | {"images" if row.images else "image": path for path in row.paths}
    for name, value in (*named.items(), *(("images", path) for path in row.images)):
        if not value.strip():
            raise BadInput(f"{where}: {name} is empty", remedy="fill it in, or leave the row out")
    told = [name for name in ("answer", "answers", "box") if getattr(row, name) not in (None, ())]
    if len(told) != 1:
        what = "both " + " and ".join(told[:2]) + " are given" if told else "no answer is given"
        raise BadInput(f"{where}: {what}", remedy="give one of answer, answers (all that are accepted) or box")
    if row.metric not in METRICS:
        raise BadInput(f"{where}: metric has no value {row.metric!r}", remedy=nearest(row.metric, list(METRICS)))
    if row.box is not None:
        _check_box(row.box, where)
    if any(boxes_of(each) is None for each in row.accepted):
        raise BadInput(f"{where}: the answer holds a damaged box", remedy="write <box>x0,y0,x1,y1</box> in thousandths")
    if need_tiles and row.tiles is None:
        raise BadInput(f"{where}: the row has no tiles", remedy="add them, or leave out --tiles-from-data")
    try:
        AskOptions(tiles=row.tiles)
    except BadInput as cause:
        raise BadInput(f"{where}: {cause.message}", remedy=cause.remedy) from cause


def _check_box(box: Box, where: str) -> None:
    try:
        AskOptions(tiles=(box,))
    except BadInput as cause:
        raise BadInput(f"{where}: {cause.message.replace('tile', 'box', 1)}", remedy=cause.remedy) from cause


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
        self._failed: dict[str, str] = {}
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
        self._failed = {outcome.id: outcome.error for outcome in outcomes if outcome.error}
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
        """Remember an outcome and append it to the file; an error that stands there already is not written again."""
        if not outcome.error:
            self._known[outcome.id] = outcome
        elif self._failed.get(outcome.id) == outcome.error:
            return
        else:
            self._failed[outcome.id] = outcome.error
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
