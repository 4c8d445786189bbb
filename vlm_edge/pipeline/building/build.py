"""MODEL and a recipe -> a bundle that was verified and measured, in one run that goes on where it was stopped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlm_edge.core.bundle import Bundle, open_bundle
from vlm_edge.core.bundle_writer import locked
from vlm_edge.core.recipe import Recipe
from vlm_edge.pipeline.building.plan import PLAN, StepPlan, check_steps, step_plans
from vlm_edge.pipeline.building.preflight import (
    check_asked,
    check_tools,
    find_job,
    fit,
    memory_limit,
    packed_model,
    unfinished,
)
from vlm_edge.pipeline.building.record import Stamp, StepRecord, stamps, write_record
from vlm_edge.pipeline.building.steps import BuildOptions, Job, Step, apply_recipe, existing, steps_of
from vlm_edge.pipeline.measuring.memory_watch import MemoryWatch
from vlm_edge.pipeline.planning.plan import Report
from vlm_edge.pipeline.quantizing.quantize import WORK
from vlm_edge.quant.memory_limit import release
from vlm_edge.quant.workspace import clear

__all__ = ["BuildOptions", "BuildProgress", "Built", "StepResult", "build_model"]


@dataclass(frozen=True)
class BuildProgress:
    """Where a build is.

    number: of this step among `steps`.  text: what it does now; empty for a mere look at the memory.  left_s: what the rest of
    this step may take, where that is known.  held_bytes, peak_bytes: now and at most in this step, without pages of mapped files,
    of which planned_bytes were expected (None: not planned).
    """

    step: str
    number: int
    steps: int
    text: str
    left_s: float | None
    held_bytes: int
    peak_bytes: int
    planned_bytes: int | None


@dataclass(frozen=True)
class StepResult:
    """One step: what it took, now or, where it was `skipped`, in an earlier run."""

    name: str
    skipped: bool
    record: StepRecord


@dataclass(frozen=True)
class Built:
    """What was built.

    limit_bytes: that a step was allowed to hold.  report: the plan of the bundle, of which the last step has measured a run.
    """

    bundle: Bundle
    recipe: Recipe
    options: BuildOptions
    limit_bytes: int
    report: Report
    steps: tuple[StepResult, ...]
    seconds: float


OnProgress = Callable[[BuildProgress], None]


def build_model(
    model: str | os.PathLike[str], out: Path, recipe: Recipe, options: BuildOptions | None = None, *,
    on_progress: OnProgress = lambda _: None, command: str = "",
) -> Built:  # fmt: skip
    """Plan, export, quantize, verify and measure MODEL as a recipe says, into the bundle OUT.

    model: a checkpoint folder, or `organisation/name` on the hub.  Steps that an earlier run finished with the same inputs are
    left alone; one that was stopped goes on as far as it can.  command: what was typed, for the reports.
    Raises DoesNotFit, before a weight is read, where a step needs more memory than there is or the bundle would not fit what
    options name; CheckFailed where a graph differs, plain rounding was closer, or `verify` says no; BadInput, MissingDependency,
    DamagedBundle. Whatever is raised, OUT holds its old bundle, or one that the same command goes on from.
    """
    options, started = options or BuildOptions(), time.monotonic()
    check_asked(recipe, options)
    limit = memory_limit(options)
    with _Stage(PLAN, 1, 1, None, on_progress) as stage:
        stage.say("read the configuration", None)
        job = find_job(
            model, out, recipe, options, limit_bytes=limit, command=command, on_step=lambda text: stage.say(text, None)
        )
        packed = packed_model(job)
        report = fit(packed, recipe, job.effort, options, limit)
        record, todo = unfinished(job)
        planned = {step.name: step for step in step_plans(packed, recipe, job.effort)}
        check_steps([planned[step.name] for step in todo], limit)
        too_much = any(step.peak_bytes > limit for step in planned.values())
        job = replace(job, enforced=options.max_memory_bytes is not None or too_much)
        if any(not step.reads_bundle for step in todo):
            check_tools(job)
    results = [StepResult(PLAN, False, stage.record("", (), {"peak_bytes": report.plan.peak_bytes}))]
    if options.force and (out / WORK).exists():
        with locked(out):
            clear(out / WORK)
    every = steps_of(recipe, job.effort)
    for number, step in enumerate(every, start=2):
        if step not in todo:
            results.append(StepResult(step.name, True, record.steps[step.name]))
            continue
        if step.reads_bundle:
            apply_recipe(job)
        found = _run(step, job, planned[step.name], number, 1 + len(every), on_progress)
        record = record.with_step(step.name, found)
        write_record(out, record)
        results.append(StepResult(step.name, False, found))
        release(cycles=True)  # so that the next step's peak does not stand on this one's
    return Built(open_bundle(out), recipe, options, limit, report, tuple(results), time.monotonic() - started)


class _Stage:
    """A step while it runs: its memory, and what it says."""

    def __init__(self, name: str, number: int, steps: int, planned: int | None, on_progress: OnProgress) -> None:
        self.name, self.number, self.steps, self.planned = name, number, steps, planned
        self._on_progress = on_progress
        self._left: tuple[float, float] | None = None
        self._watch = MemoryWatch(lambda: self._tell(""))
        self._started = self._ended = time.monotonic()

    def __enter__(self) -> _Stage:
        self._watch.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._watch.__exit__(*raised)
        self._ended = time.monotonic()

    def say(self, text: str, left_s: float | None) -> None:
        """Tell what is being done."""
        self._left = None if left_s is None else (time.monotonic(), left_s)
        self._tell(text)

    def _tell(self, text: str) -> None:
        left = None if self._left is None else max(0.0, self._left[1] - (time.monotonic() - self._left[0]))
        watch = self._watch
        self._on_progress(
            BuildProgress(
                self.name, self.number, self.steps, text, left, watch.held_bytes, watch.kept_bytes, self.planned
            )
        )

    def record(self, inputs: str, outputs: Sequence[Stamp], details: Mapping[str, Any]) -> StepRecord:
        """Once it is over."""
        seconds = round(self._ended - self._started, 3)
        peak, kept = self._watch.peak_bytes, self._watch.kept_bytes
        return StepRecord(inputs, tuple(outputs), self.planned, peak, kept, seconds, dict(details))


def _run(step: Step, job: Job, plan: StepPlan, number: int, steps: int, on_progress: OnProgress) -> StepRecord:
    with _Stage(step.name, number, steps, plan.within(job.limit_bytes), on_progress) as stage:
        done = step.run(job, stage.say)
    bundle = existing(job.out)
    outputs = stamps(bundle, done.artifacts) if bundle else ()
    # a step that reads the bundle is asked for its inputs behind it: it has read what is there now
    return stage.record(step.inputs(job), outputs, done.details)
