"""The evaluation loop with a pipeline that looks its answers up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fake_pipeline import FakePipeline
from vlm_edge.core.layout import Box
from vlm_edge.errors import BadImage, DamagedBundle
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.evaluating.evaluate import evaluate
from vlm_edge.pipeline.evaluating.rows import EvalRow, OutcomeLog
from vlm_edge.vision.grounding import LabelledBox

BOX = "<box>100,100,200,200</box>"
ROWS = (
    EvalRow("a.png", "q1", "1", "value", ((0, 0, 50, 50),), ("long",)),
    EvalRow("b.png", "q2", "2", "value", (), ("long", "mono")),
    EvalRow("a.png", "q3", BOX, "where", ((0, 0, 50, 50), (50, 0, 90, 50)), ("mono",)),
    EvalRow("a.png", "q4", "4"),
)
ANSWERS = {"q1": " 1 ", "q2": "wrong", "q3": "<box>100,100,200,180</box>", "q4": "4"}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    return tmp_path


def test_scores_tokens_times_and_memory(root: Path) -> None:
    steps: list[int] = []
    found = evaluate(FakePipeline(ANSWERS), ROWS, AskOptions(), root=root, on_row=lambda: steps.append(1))
    assert (found.overall.n, found.overall.right) == (4, 3)
    assert {task: (score.n, score.right) for task, score in found.tasks.items()} == {"value": (2, 1), "where": (1, 1)}
    assert {tag: (score.n, score.right) for tag, score in found.strata.items()} == {"long": (2, 1), "mono": (2, 1)}
    assert found.tasks["where"].mean_iou == pytest.approx(0.8)
    assert (found.visual_before_mean, found.visual_after_mean) == (448, 112)
    assert found.first_question_ms == {"vision": 40, "decode": 10, "total": 50}
    assert found.later_question_ms == {"vision": 0, "decode": 10, "total": 10}
    assert (found.planned_peak_bytes, found.measured_peak_bytes) == (300, 204)
    assert len(steps) == 4
    assert json.loads(json.dumps(found.to_json()))["overall"]["accuracy"] == 0.75


def test_questions_about_one_image_follow_each_other(root: Path) -> None:
    pipeline = FakePipeline(ANSWERS)
    found = evaluate(pipeline, ROWS, AskOptions(), root=root)
    assert [question for _, question, _ in pipeline.calls] == ["q1", "q3", "q4", "q2"]
    assert [outcome.question for outcome in found.outcomes] == ["q1", "q2", "q3", "q4"]


def test_tiles_come_from_the_data_when_asked_for(root: Path) -> None:
    pipeline = FakePipeline(ANSWERS)
    evaluate(pipeline, ROWS[:3], AskOptions(max_new_tokens=5), root=root, tiles_from_data=True)
    shown = {question: options for _, question, options in pipeline.calls}
    assert shown == {row.question: AskOptions(max_new_tokens=5, tiles=row.tiles) for row in ROWS[:3]}
    evaluate(pipeline, ROWS[:1], AskOptions(), root=root)
    assert pipeline.calls[-1][2] == AskOptions()


def test_the_first_failure_stops(root: Path) -> None:
    with pytest.raises(BadImage) as failure:
        evaluate(FakePipeline(ANSWERS, fails_on="b.png"), ROWS, AskOptions(), root=root)
    assert "'q2'" in failure.value.message
    assert "b.png" in failure.value.message
    assert "--keep-going" in failure.value.remedy


def test_keep_going_counts_and_lists_failures(root: Path) -> None:
    (root / "b.png").unlink()
    found = evaluate(FakePipeline(ANSWERS, fails_on="b.png"), ROWS, AskOptions(), root=root, keep_going=True)
    assert (found.overall.n, found.overall.right, found.overall.errors) == (4, 3, 1)
    assert found.to_json()["errors"] == [{"image": "b.png", "question": "q2", "error": "b.png is damaged"}]
    assert found.visual_before_mean == 448


def test_a_box_question_that_fails_lowers_the_mean_overlap(root: Path) -> None:
    rows = (EvalRow("a.png", "q3", BOX, "where"), EvalRow("b.png", "q3", BOX, "where"))
    found = evaluate(FakePipeline(ANSWERS, fails_on="b.png"), rows, AskOptions(), root=root, keep_going=True)
    assert found.overall.mean_iou == pytest.approx(0.4)


def test_a_damaged_bundle_stops_whatever_was_asked(root: Path) -> None:
    pipeline = FakePipeline(ANSWERS, fails_on="a.png", failure=DamagedBundle)
    with pytest.raises(DamagedBundle):
        evaluate(pipeline, ROWS, AskOptions(), root=root, keep_going=True)


def test_a_second_run_asks_only_what_is_missing(root: Path) -> None:
    log = root / "log.jsonl"
    with pytest.raises(BadImage):
        evaluate(FakePipeline(ANSWERS, fails_on="b.png"), ROWS, AskOptions(), root=root, log=OutcomeLog(log))
    pipeline = FakePipeline(ANSWERS)
    found = evaluate(pipeline, ROWS, AskOptions(), root=root, log=OutcomeLog(log))
    assert [question for _, question, _ in pipeline.calls] == ["q2"]
    assert found.resumed == 3
    fresh = evaluate(FakePipeline(ANSWERS), ROWS, AskOptions(), root=root)
    assert found.overall == fresh.overall
    assert found.strata == fresh.strata


def test_failed_rows_are_tried_again(root: Path) -> None:
    log = root / "log.jsonl"
    failing = FakePipeline(ANSWERS, fails_on="b.png")
    evaluate(failing, ROWS, AskOptions(), root=root, keep_going=True, log=OutcomeLog(log))
    pipeline = FakePipeline(ANSWERS)
    found = evaluate(pipeline, ROWS, AskOptions(), root=root, log=OutcomeLog(log))
    assert len(pipeline.calls) == 1
    assert found.overall.errors == 0


def test_other_options_bundles_and_image_contents_are_asked_anew(root: Path) -> None:
    log = root / "log.jsonl"
    row = ROWS[:1]

    def asked(options: AskOptions, of: str = "one", *, own_tiles: bool = False) -> int:
        pipeline = FakePipeline(ANSWERS)
        evaluate(pipeline, row, options, root=root, asked_of=of, tiles_from_data=own_tiles, log=OutcomeLog(log))
        return len(pipeline.calls)

    assert asked(AskOptions()) == 1
    assert asked(AskOptions()) == 0
    assert asked(AskOptions(reduce="threshold")) == 1
    assert asked(AskOptions(), of="two") == 1
    assert asked(AskOptions(), own_tiles=True) == 1
    (root / "a.png").write_bytes(b"other pixels")
    assert asked(AskOptions()) == 1


def test_a_row_that_stands_twice_counts_twice_and_is_asked_once(root: Path) -> None:
    pipeline = FakePipeline(ANSWERS)
    found = evaluate(pipeline, ROWS[:1] * 2, AskOptions(), root=root)
    assert (found.overall.n, len(pipeline.calls)) == (2, 1)


def test_a_relative_root_never_means_standard_input(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    Path("-").write_bytes(b"pixels")
    pipeline = FakePipeline(default="1")
    evaluate(pipeline, [EvalRow("-", "q", "1")], AskOptions(), root=Path())
    assert pipeline.calls[0][0] == "-"


def test_several_images_accepted_answers_and_counts(root: Path) -> None:
    rows = (
        EvalRow(question="q1", images=("a.png", "b.png"), answers=("one", "1")),
        EvalRow("b.png", "q2", "wrong!", metric="anls"),
        EvalRow("b.png", "q2", "wrong!"),
    )
    pipeline = SeveralImages(ANSWERS)
    found = evaluate(pipeline, rows, AskOptions(), root=root)
    assert pipeline.calls[0][0] == "a.png b.png"
    assert [outcome.right for outcome in found.outcomes] == [True, True, False]
    assert found.outcomes[0].image == "a.png, b.png"
    assert found.outcomes[0].image_bytes == 2
    assert (found.prompt_mean, found.generated_mean) == (130, 4)
    assert found.overall.exact == pytest.approx(1 / 3)
    assert found.overall.anls == pytest.approx((1 + 2 * 5 / 6) / 3)
    assert found.to_json()["tokens"]["generated_mean"] == 4


@pytest.mark.parametrize(
    ("boxes", "right", "overlap"),
    [
        ([(10, 10, 30, 30)], True, 1.0),
        ([(10, 10, 30, 20)], True, 0.5),
        ([(10, 10, 30, 19)], False, 0.45),
        ([(50, 50, 60, 60), (10, 10, 30, 30)], False, 0.0),  # the first one is the answer
        ([(10, 10, 10, 30)], False, 0.0),
        ([], False, 0.0),
    ],
)
def test_a_box_in_pixels_is_met_in_any_dialect(root: Path, boxes: list[Box], right: bool, overlap: float) -> None:
    pipeline = FakePipeline(default="there", boxes=tuple(LabelledBox("", box) for box in boxes))
    row = EvalRow("a.png", "where?", box=(10, 10, 30, 30))
    (outcome,) = evaluate(pipeline, [row], AskOptions(), root=root).outcomes
    assert (outcome.right, outcome.iou) == (right, pytest.approx(overlap))


def test_a_box_row_that_fails_overlaps_nothing(root: Path) -> None:
    row = EvalRow("b.png", "where?", box=(10, 10, 30, 30))
    found = evaluate(FakePipeline(fails_on="b.png"), [row], AskOptions(), root=root, keep_going=True)
    assert (found.overall.mean_iou, found.overall.right, found.overall.exact) == (0.0, 0, None)


class SeveralImages(FakePipeline):
    """Takes lists of images, whose names stand together."""

    def ask(self, image: Path | list[Path], question: str, options: AskOptions | None = None) -> Answer:
        paths = image if isinstance(image, list) else [image]
        return super().ask(Path(" ".join(path.name for path in paths)), question, options)
