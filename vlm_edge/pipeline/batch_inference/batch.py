"""Many questions in one go: rows in, answers out as they come, to be continued after whatever ends the run."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from vlm_edge.core import host
from vlm_edge.core.load import to_plain
from vlm_edge.errors import BadInput, CheckFailed, DoesNotFit
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import preflight
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.batch_inference.input import BatchInput, Row
from vlm_edge.pipeline.batch_inference.log import BatchLog

SHOWN_FAILURES = 5
_OF_THE_RUN = ("bundle", "device")
"""Keys of an answer that are the same in every row; the summary has them."""


@dataclass(frozen=True)
class Loading:
    """How a worker opens its pipeline; plain data, since it may travel to another process."""

    bundle: str | None
    device: str
    threads: int | None
    budget: int | None
    verify: bool


class Answerer:
    """A loaded pipeline that answers rows, what a row can cause being part of its result."""

    def __init__(self, loading: Loading, options: AskOptions, root: str) -> None:
        """root: folder that images are relative to.  Raises whatever Pipeline.load raises."""
        self._options = options
        self._root = Path(root)
        self._budget = loading.budget
        self.pipeline = Pipeline.load(
            loading.bundle, device=loading.device, threads=loading.threads, budget=loading.budget, verify=loading.verify
        )

    def answer(self, row: Row) -> dict[str, Any]:
        """What `run --json` would print, or `error` and `fix`.

        Raises DamagedBundle: that is no row's fault, and would be said of every one.
        """
        images = [self._root / name for name in row.images]
        try:
            fitted = preflight(
                self.pipeline.bundle, images, self._options, self._budget, device=self.pipeline.device, again=True
            )
            answer = self.pipeline.ask(images, row.question, fitted.options).to_json()
        except (BadInput, DoesNotFit, CheckFailed) as failure:
            return failed(failure.message, failure.remedy)
        return {name: value for name, value in answer.items() if name not in _OF_THE_RUN} | fitted.to_json()


def failed(message: str, remedy: str) -> dict[str, Any]:
    """The content of a row that has no answer."""
    return {"error": message, "fix": remedy}


class Engine(Protocol):
    """Where rows are answered."""

    def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Each row once, in any order, as soon as it is done; takes no more rows than are being worked on."""
        ...


class LocalEngine:
    """One pipeline in this process; rows run one after another, since a decoder here holds one sequence."""

    def __init__(self, answerer: Answerer) -> None:
        self._answerer = answerer

    def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """In the order of the input."""
        for row in rows:
            yield row, self._answerer.answer(row)


@dataclass
class Summary:
    """What a batch came to. answered, failed: rows in OUT, earlier runs' too.  resumed: those that were there already."""

    rows: int = 0
    answered: int = 0
    failed: int = 0
    resumed: int = 0
    generated_tokens: int = 0
    seconds: float = 0.0
    planned_peak_bytes: int = 0
    measured_peak_bytes: int = 0
    failures: list[dict[str, Any]] = field(default_factory=list)

    def count(self, row: Row, content: dict[str, Any]) -> None:
        """Add a row that was done now."""
        if "error" in content:
            self.failed += 1
            if len(self.failures) < SHOWN_FAILURES:
                self.failures.append({"row": row.number, "id": row.id, "error": content["error"]})
            return
        self.answered += 1
        self.generated_tokens += content["tokens"]["generated"]
        memory = content["memory"]
        self.planned_peak_bytes = max(self.planned_peak_bytes, memory["planned_peak_bytes"])
        self.measured_peak_bytes = max(self.measured_peak_bytes, memory["measured_peak_bytes"])

    def to_json(self) -> dict[str, Any]:
        """The keys of `vlm-edge batch --json`; the peaks are one worker's."""
        done = self.answered + self.failed - self.resumed
        return {
            "rows": self.rows,
            "answered": self.answered,
            "failed": self.failed,
            "resumed": self.resumed,
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(done / self.seconds, 3) if self.seconds and done else None,
            "generated_tokens": self.generated_tokens,
            "memory": {"planned_peak_bytes": self.planned_peak_bytes, "measured_peak_bytes": self.measured_peak_bytes},
            "failures": self.failures,
        }


def row_key(row: Row, asked_of: str) -> int:
    """64 bits of a hash that tell a row, its question and what answers it; 8 bytes a row are held of it."""
    digest = hashlib.blake2b(f"{asked_of}\0{row.identity}".encode(errors="replace"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def asked_of(manifest_hash: str, options: AskOptions) -> str:
    """What a row is asked of: two runs that agree in it may share an output."""
    return json.dumps([manifest_hash, to_plain(options)], sort_keys=True)


def count_rows(source: BatchInput, log: BatchLog, of: str) -> int:
    """Rows of the input.

    Raises BadInput where none of them can be asked, or where the log holds rows that are not among them.
    """
    total = known = good = 0
    first_problem: Row | None = None
    for row in source:
        total += 1
        known += log.holds(row_key(row, of))
        good += not row.problem
        first_problem = first_problem or (row if row.problem else None)
    if not total:
        raise BadInput(
            f"{source.path} holds no rows", remedy="name a JSON Lines file with rows, or a folder with images"
        )
    if first_problem is not None and not good:
        raise BadInput(f"{first_problem.problem} (and no other line is a row)", remedy=first_problem.fix)
    if known != log.done:
        raise BadInput(
            f"{log.path} holds {log.done - known} rows that are not of this input, bundle and options",
            remedy="name another OUT, or give those with which it was begun",
        )
    return total


def run_batch(
    source: BatchInput,
    log: BatchLog,
    engine: Engine | None,
    *,
    of: str,
    total: int,
    on_row: Callable[[], None] = lambda: None,
) -> Summary:
    """Answer every row that the log does not hold, and append each as soon as it is done.

    engine: None where the log holds every row.  of: see asked_of.  total: see count_rows.  on_row: called for each row, also for
    those that are there already.
    """
    summary = Summary(rows=total, answered=log.done - log.failed, failed=log.failed, resumed=log.done)
    started = time.perf_counter()

    def put(row: Row, content: dict[str, Any]) -> None:
        log.add(row.number, row_key(row, of), {"id": row.id} | content)
        summary.count(row, content)
        on_row()

    def waiting() -> Iterator[Row]:
        for row in source:
            if log.holds(row_key(row, of)):
                on_row()
            elif row.problem:
                put(row, failed(row.problem, row.fix))
            else:
                yield row

    for row, content in engine.answers(waiting()) if engine else ():
        put(row, content)
    summary.seconds = time.perf_counter() - started
    summary.measured_peak_bytes = max(summary.measured_peak_bytes, host.peak_rss_bytes())
    return summary
