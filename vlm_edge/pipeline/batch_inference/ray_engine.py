"""`batch --engine ray`: the same rows on a Ray cluster, one loaded pipeline in each worker. Needs the `ray` extra."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from vlm_edge.core import host
from vlm_edge.errors import BadInput, CheckFailed, MissingDependency, VlmEdgeError
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.batch_inference.batch import Answerer, Loading, failed
from vlm_edge.pipeline.batch_inference.input import Row

ADDRESS = "RAY_ADDRESS"
QUEUED = 2
"""Rows that a worker holds: the one that it works on, and the next."""
MOST_DEATHS = 3
_STOP = "stop"


def check_ray(workers: int) -> None:
    """Raise MissingDependency without Ray, BadInput for a number of workers that cannot be."""
    if workers < 1:
        raise BadInput(f"--workers {workers} is not allowed", remedy="use 1 or more")
    if importlib.util.find_spec("ray") is None:
        raise MissingDependency("--engine ray needs Ray", remedy="pip install 'vlm-edge[ray]'")


class _Worker:
    """What an actor runs: errors travel as data, since exceptions of another process lose their remedy on the way."""

    def __init__(self, loading: Loading, options: AskOptions, root: str) -> None:
        self._failure: dict[str, Any] | None = None
        try:
            self._answerer = Answerer(loading, options, root)
        except VlmEdgeError as cause:
            self._failure = {_STOP: [cause.message, cause.remedy]}

    def answer(self, row: Row) -> dict[str, Any]:
        """As Answerer.answer; `stop` with message and remedy where no row could be answered."""
        if self._failure is not None:
            return self._failure
        try:
            return self._answerer.answer(row)
        except VlmEdgeError as cause:
            return {_STOP: [cause.message, cause.remedy]}


@dataclass(eq=False)
class _Actor:
    """A worker's handle, and the rows that it holds by the reference of their result."""

    handle: Any
    held: dict[Any, Row] = field(default_factory=dict)


class RayEngine:
    """Workers on the cluster of RAY_ADDRESS, or on this machine where that is not set.

    Bundle and images must lie at the same paths wherever a worker runs. A worker that dies takes the rows that it holds with it:
    those become failures, and another worker is started in its place.
    """

    def __init__(self, loading: Loading, options: AskOptions, root: str, *, workers: int) -> None:
        """loading: its budget and threads are one worker's; without threads the cores are shared out.

        Raises MissingDependency, BadInput.
        """
        check_ray(workers)
        share = max(1, host.real_cores() // workers)
        self._threads = share if loading.threads is None else host.session_threads(loading.threads)
        self._arguments = (replace(loading, threads=self._threads), options, root)
        self._workers = workers

    def answers(self, rows: Iterable[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        """As workers finish them: rows tell their place by their number.  Raises CheckFailed where workers keep dying."""
        import ray

        self._connect(ray)
        try:
            yield from self._answers(ray, iter(rows))
        finally:
            ray.shutdown()

    def _connect(self, ray: Any) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if os.environ.get(ADDRESS):
            ray.init(**quiet)
        else:
            ray.init(address="local", num_cpus=self._workers * self._threads, include_dashboard=False, **quiet)

    def _answers(self, ray: Any, rows: Iterator[Row]) -> Iterator[tuple[Row, dict[str, Any]]]:
        remote = ray.remote(num_cpus=self._threads)(_Worker)
        actors = [_Actor(remote.remote(*self._arguments)) for _ in range(self._workers)]
        deaths = 0
        while True:
            _hand_out(actors, rows)
            waiting = {reference: actor for actor in actors for reference in actor.held}
            if not waiting:
                return
            ready, _ = ray.wait(list(waiting), num_returns=1)
            actor = waiting[ready[0]]
            try:
                content = ray.get(ready[0])
            except ray.exceptions.RayActorError as cause:
                deaths += 1
                if deaths > MOST_DEATHS:
                    raise CheckFailed(
                        f"workers keep dying: {_first_line(cause)}", remedy="use fewer --workers, or a smaller --budget"
                    ) from cause
                for row in actor.held.values():
                    yield row, failed(f"the worker died: {_first_line(cause)}", "run it again with --retry-failed")
                actors[actors.index(actor)] = _Actor(remote.remote(*self._arguments))
                continue
            except ray.exceptions.RayError as cause:
                raise CheckFailed(f"a worker failed: {_first_line(cause)}", remedy="try --engine local") from cause
            if _STOP in content:
                message, remedy = content[_STOP]
                raise CheckFailed(f"a worker stopped: {message}", remedy=remedy)
            deaths = 0
            yield actor.held.pop(ready[0]), content


def _hand_out(actors: list[_Actor], rows: Iterator[Row]) -> None:
    """Rows to whoever holds the fewest, until each holds QUEUED or there are no more."""
    while (idlest := min(actors, key=lambda actor: len(actor.held))) and len(idlest.held) < QUEUED:
        row = next(rows, None)
        if row is None:
            return
        idlest.held[idlest.handle.answer.remote(row)] = row


def _first_line(cause: Exception) -> str:
    return next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
