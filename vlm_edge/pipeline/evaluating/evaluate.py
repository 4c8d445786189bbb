"""Accuracy of a bundle on a data file, beside the tokens, the time and the memory that it took."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median
from typing import Any, Protocol

from vlm_edge.core.load import to_plain
from vlm_edge.errors import BadInput, DoesNotFit
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.evaluating.metrics import IOU_LIMIT, RowOutcome, Score, box_iou, judge
from vlm_edge.pipeline.evaluating.rows import EvalRow, OutcomeLog, digest, row_hash
from vlm_edge.vision.fingerprint import fingerprint


class Asker(Protocol):
    """What answers: a Pipeline, or anything else with its `ask`."""

    def ask(self, image: Path | list[Path], question: str, options: AskOptions | None = None) -> Answer:
        """One answer about an image, or about several.

        Raises BadInput or DoesNotFit for an image or a question that cannot be used.
        """
        ...


@dataclass(frozen=True)
class Evaluation:
    """Scores over all rows, by task and by stratum; what they cost; and every row's outcome.

    first_question_ms, later_question_ms: median milliseconds by stage, over the first questions about an image (those
    that ran the vision tower) and over further ones, which reuse it.  Peaks are the largest of any row; the measured
    one is the process's, whatever else it holds.  resumed: rows taken from the log of an earlier run.
    """

    overall: Score
    tasks: Mapping[str, Score]
    strata: Mapping[str, Score]
    visual_before_mean: float
    visual_after_mean: float
    prompt_mean: float
    generated_mean: float
    image_bytes_mean: float
    first_question_ms: Mapping[str, float]
    later_question_ms: Mapping[str, float]
    planned_peak_bytes: int
    measured_peak_bytes: int
    resumed: int = 0
    outcomes: tuple[RowOutcome, ...] = field(default=(), repr=False)

    def to_json(self) -> dict[str, Any]:
        """Everything but the outcomes, of which only the errors are listed."""
        return {
            "overall": self.overall.to_json(),
            "tasks": {name: score.to_json() for name, score in self.tasks.items()},
            "strata": {name: score.to_json() for name, score in self.strata.items()},
            "tokens": {
                "visual_before_mean": round(self.visual_before_mean, 2),
                "visual_after_mean": round(self.visual_after_mean, 2),
                "prompt_mean": round(self.prompt_mean, 2),
                "generated_mean": round(self.generated_mean, 2),
            },
            "image_bytes_mean": round(self.image_bytes_mean),
            "timings_ms": {
                "first_question": {name: round(value, 2) for name, value in self.first_question_ms.items()},
                "later_question": {name: round(value, 2) for name, value in self.later_question_ms.items()},
            },
            "memory": {"planned_peak_bytes": self.planned_peak_bytes, "measured_peak_bytes": self.measured_peak_bytes},
            "resumed": self.resumed,
            "errors": [
                {"image": outcome.image, "question": outcome.question, "error": outcome.error}
                for outcome in self.outcomes
                if outcome.error
            ],
        }


def evaluate(
    asker: Asker,
    rows: Sequence[EvalRow],
    options: AskOptions,
    *,
    root: Path,
    asked_of: str = "",
    tiles_from_data: bool = False,
    keep_going: bool = False,
    log: OutcomeLog | None = None,
    on_row: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Ask every row's question and score the answers.

    root: folder that image paths are relative to.  asked_of: what tells this bundle from others, part of each outcome's
    id.  tiles_from_data: show each row's own tiles.  keep_going: an image or question that cannot be used becomes an
    error row; otherwise the first one is raised as BadInput or DoesNotFit.  log: outcomes of earlier runs are not asked
    again, and new ones are added as they come.  on_row: called after each row.
    Rows about one image are asked one after the other, images in the order of the file, so that vision runs once for
    each image and set of tiles.
    """
    root, log = root.absolute(), log or OutcomeLog()
    outcomes: dict[int, RowOutcome] = {}
    resumed = 0
    for paths, group in by_image(rows):
        content = content_of(root, paths)
        for index in group:
            row = rows[index]
            chosen = replace(options, tiles=row.tiles) if tiles_from_data else options
            identity = identity_of(row, content, chosen, asked_of)
            known = log.get(identity)
            if known is None:
                known = ask_row(asker, row, chosen, root=root, identity=identity, keep_going=keep_going)
                log.add(known)
            else:
                resumed += 1
            outcomes[index] = known
            on_row()
    return summarise([outcomes[index] for index in range(len(rows))], resumed=resumed)


def by_image(rows: Sequence[EvalRow]) -> Iterator[tuple[tuple[str, ...], list[int]]]:
    """Image paths, and the indices of the rows about them, in the order of the file."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.paths, []).append(index)
    yield from groups.items()


def content_of(root: Path, paths: Sequence[str]) -> str:
    """What identifies images, or nothing where one cannot be read: the question will say why."""
    try:
        return " ".join(fingerprint(root / path) for path in paths)
    except BadInput:
        return ""


def identity_of(row: EvalRow, content: str, options: AskOptions, asked_of: str) -> str:
    """What tells an outcome from all others in a log."""
    return digest([row_hash(row), content, to_plain(options), asked_of])


def ask_row(
    asker: Asker, row: EvalRow, options: AskOptions, *, root: Path, identity: str, keep_going: bool
) -> RowOutcome:
    """Ask one question and judge the answer; what keep_going means is told at `evaluate`."""
    paths = [root / path for path in row.paths]
    blank = RowOutcome(
        id=identity,
        row=row_hash(row),
        image=", ".join(row.paths),
        question=row.question,
        task=row.task,
        stratum=row.stratum,
        expected=row.accepted[0],
        also=row.accepted[1:],
    )
    try:
        answer = asker.ask(paths if row.images else paths[0], row.question, options)
    except (BadInput, DoesNotFit) as failure:
        if not keep_going:
            message = f"{failure.message} (asked {row.question!r} about {blank.image})"
            raise type(failure)(
                message, remedy=f"{failure.remedy}; or pass over such rows with --keep-going"
            ) from failure
        nothing = 0.0 if row.box is not None else judge(row.accepted[0], "")[1]
        return replace(blank, iou=nothing, error=failure.message)
    right, overlap = _judged(row, answer)
    return replace(
        blank,
        answer=answer.text,
        right=right,
        iou=overlap,
        visual_before=answer.tokens.visual_before,
        visual_after=answer.tokens.visual_after,
        prompt_tokens=answer.tokens.prompt,
        generated_tokens=answer.tokens.generated,
        image_bytes=sum(path.stat().st_size for path in paths),
        timings_ms={name: round(value, 3) for name, value in answer.timings_ms.items()},
        planned_peak_bytes=answer.planned_peak_bytes,
        measured_peak_bytes=answer.measured_peak_bytes,
    )


def _judged(row: EvalRow, answer: Answer) -> tuple[bool, float | None]:
    """A box in source pixels is met by the first box of the answer, in whatever dialect it was written."""
    if row.box is None:
        return judge(row.accepted[0], answer.text, metric=row.metric, also=row.accepted[1:])
    x0, y0, x1, y1 = answer.boxes[0].box if answer.boxes else (0, 0, 0, 0)
    overlap = box_iou(row.box, (x0, y0, x1, y1)) if x0 < x1 and y0 < y1 else 0.0
    return overlap >= IOU_LIMIT, overlap


def summarise(outcomes: Sequence[RowOutcome], *, resumed: int = 0) -> Evaluation:
    """Scores, mean tokens, median times and peaks of outcomes; tasks and strata in the order of the rows."""
    tasks = {
        name: Score.of([o for o in outcomes if o.task == name]) for name in dict.fromkeys(o.task for o in outcomes)
    }
    tags = dict.fromkeys(tag for outcome in outcomes for tag in outcome.stratum)
    answered = [outcome for outcome in outcomes if not outcome.error]
    first = [outcome.timings_ms for outcome in answered if outcome.timings_ms.get("vision", 0) > 0]
    later = [outcome.timings_ms for outcome in answered if outcome.timings_ms.get("vision", 0) == 0]
    return Evaluation(
        overall=Score.of(outcomes),
        tasks={name: score for name, score in tasks.items() if name},
        strata={tag: Score.of([o for o in outcomes if tag in o.stratum]) for tag in tags},
        visual_before_mean=fmean(o.visual_before for o in answered) if answered else 0.0,
        visual_after_mean=fmean(o.visual_after for o in answered) if answered else 0.0,
        prompt_mean=fmean(o.prompt_tokens for o in answered) if answered else 0.0,
        generated_mean=fmean(o.generated_tokens for o in answered) if answered else 0.0,
        image_bytes_mean=fmean(o.image_bytes for o in answered) if answered else 0.0,
        first_question_ms=_medians(first),
        later_question_ms=_medians(later),
        planned_peak_bytes=max((o.planned_peak_bytes for o in answered), default=0),
        measured_peak_bytes=max((o.measured_peak_bytes for o in answered), default=0),
        resumed=resumed,
        outcomes=tuple(outcomes),
    )


def _medians(timings_ms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """By stage; loading the bundle happens once, so it is taken out of the total and left out."""
    stages = dict.fromkeys(name for times in timings_ms for name in times if name not in ("load", "total"))
    medians = {name: median(times.get(name, 0.0) for times in timings_ms) for name in stages}
    if any("total" in times for times in timings_ms):
        medians["total"] = median(times.get("total", 0.0) - times.get("load", 0.0) for times in timings_ms)
    return medians
