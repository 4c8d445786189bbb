"""A sweep: the same rows asked in every way that its file names, image by image, with a log that a second run continues."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from vlm_edge import __version__
from vlm_edge.core.bundle import Bundle
from vlm_edge.core.file_lock import lock_exclusively
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.encoders import decoder_target
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import choose_device
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.evaluating.evaluate import (
    Asker,
    Evaluation,
    ask_row,
    by_image,
    content_of,
    identity_of,
    summarise,
)
from vlm_edge.pipeline.evaluating.metrics import RowOutcome
from vlm_edge.pipeline.evaluating.rows import EvalRow, OutcomeLog
from vlm_edge.pipeline.measuring.own_process import Asked, peak_bytes
from vlm_edge.pipeline.sweeping.file import Point
from vlm_edge.pipeline.sweeping.shared_vision import SharedVision

LOG = "outcomes.jsonl"


@dataclass(frozen=True)
class Opening:
    """How bundles are opened, as for Pipeline.load."""

    device: str = "auto"
    threads: int | None = None
    budget: str | None = None
    verify: bool = False


@dataclass(frozen=True, eq=False)
class Swept:
    """A point and what it came to.

    model_bytes: files of the bundle that a run loads.  own_peak_bytes: the most resident memory of a process that asks this point
    alone, its most demanding row; 0 where the system does not tell or no row was answered.
    """

    point: Point
    evaluation: Evaluation
    model_bytes: int
    own_peak_bytes: int


@contextmanager
def locked_log(folder: Path) -> Iterator[OutcomeLog]:
    """The log of a sweep in its folder, which is made; no other process sweeps there until the block's end.

    Raises BadInput where one does, or the folder cannot be written.
    """
    path = folder / LOG
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as stream:
            if not lock_exclusively(stream.fileno()):
                raise BadInput(
                    f"another sweep is writing {path}", remedy="wait until it has ended, or name another --out"
                )
            yield OutcomeLog(path)
    except OSError as cause:
        raise BadInput(f"{folder} cannot be written: {cause}", remedy="name another --out, or make room") from cause


def sweep(
    points: Sequence[Point],
    rows: Sequence[EvalRow],
    *,
    root: Path,
    bundles: Mapping[str, Bundle],
    opening: Opening,
    log: OutcomeLog,
    keep_going: bool = False,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[Swept, ...]:
    """Ask every row in every way, then measure each point's memory.

    root: folder that image paths are relative to.  log: what it holds is not asked again.  on_step: called after each row of each
    point, and after each measurement.  One bundle is open at a time, and opened only if something is left to ask it.
    """
    root = root.absolute()
    found: dict[Point, Swept] = {}
    for name in dict.fromkeys(point.bundle for point in points):
        own = [point for point in points if point.bundle == name]
        bundle = _OneBundle(bundles[name], opening, root, log, keep_going=keep_going, on_step=on_step)
        for point, evaluation in bundle.ask(own, rows).items():
            found[point] = Swept(point, evaluation, bundle.model_bytes, bundle.own_peak(point, rows, evaluation))
            on_step()
    return tuple(found[point] for point in points)


class _OneBundle:
    """The points of one bundle."""

    def __init__(
        self, bundle: Bundle, opening: Opening, root: Path, log: OutcomeLog, *, keep_going: bool,
        on_step: Callable[[], None],
    ) -> None:  # fmt: skip
        self._bundle, self._opening, self._root, self._log = bundle, opening, root, log
        self._keep_going, self._on_step = keep_going, on_step
        self._device = choose_device(bundle, opening.device)
        self._asked_of = f"{bundle.manifest.self_sha256} {self._device} {__version__}"
        self.model_bytes = sum(bundle.bytes_by_role(self._device, decoder=decoder_target(self._device)).values())

    @cached_property
    def _asker(self) -> Asker:
        how = self._opening
        return SharedVision(
            Pipeline.load(self._bundle, device=how.device, threads=how.threads, budget=how.budget, verify=how.verify)
        )

    def ask(self, points: Sequence[Point], rows: Sequence[EvalRow]) -> dict[Point, Evaluation]:
        """Image by image, and for each image those points one after another that show the same tiles of it."""
        outcomes: dict[Point, dict[int, RowOutcome]] = {point: {} for point in points}
        resumed = dict.fromkeys(points, 0)
        for paths, group in by_image(rows):
            content = content_of(self._root, paths)
            for point in sorted(points, key=_shown):
                for index in group:
                    outcome, known = self._outcome(point, rows[index], content)
                    outcomes[point][index] = outcome
                    resumed[point] += known
                    self._on_step()
        return {
            point: summarise([outcomes[point][i] for i in range(len(rows))], resumed=resumed[point]) for point in points
        }

    def _outcome(self, point: Point, row: EvalRow, content: str) -> tuple[RowOutcome, bool]:
        """From the log, or asked and logged; and whether it was known."""
        options = options_for(point, row)
        identity = identity_of(row, content, options, self._asked_of)
        known = self._log.get(identity)
        if known is not None:
            return known, True
        outcome = ask_row(self._asker, row, options, root=self._root, identity=identity, keep_going=self._keep_going)
        self._log.add(outcome)
        return outcome, False

    def own_peak(self, point: Point, rows: Sequence[EvalRow], evaluation: Evaluation) -> int:
        """Peak memory of the row that is planned largest, in a process of its own; from the log where it was measured before."""
        answered = [(o.planned_peak_bytes, -i) for i, o in enumerate(evaluation.outcomes) if not o.error]
        if not answered:
            return 0
        index = -max(answered)[1]
        row, outcome = rows[index], evaluation.outcomes[index]
        options = options_for(point, row)
        identity = identity_of(row, outcome.id, options, "peak memory of a process of its own")
        known = self._log.get(identity)
        if known is None:
            images = tuple(str(self._root / path) for path in row.paths)
            asked = Asked(str(self._bundle.root), self._device, self._opening.threads, images, row.question, options)
            known = replace(outcome, id=identity, measured_peak_bytes=peak_bytes(asked))
            self._log.add(known)
        return known.measured_peak_bytes


def options_for(point: Point, row: EvalRow) -> AskOptions:
    """A point's options, with the row's own tiles where it shows those."""
    return replace(point.options, tiles=row.tiles) if point.own_tiles else point.options


def _shown(point: Point) -> tuple[bool, str, int, str]:
    look = point.look
    return point.own_tiles, look.tiling, look.max_tiles, look.saliency
