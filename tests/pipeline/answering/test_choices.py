"""Every reduction and every saliency through the pipeline, on the embedded model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlm_edge import AskOptions, Pipeline
from vlm_edge.core import discover
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.bundle_writer import Staged, locked, publish
from vlm_edge.core.manifest_checks import REDUCTIONS, SALIENCIES
from vlm_edge.core.reduction import kept_tokens
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.memory.request import visual_of_tiles
from vlm_edge.pipeline.answering.encoders import SALIENCY_ROLE
from vlm_edge.pipeline.answering.options import READ_BY, allowed_reductions
from vlm_edge.pipeline.answering.run import plan, source_header
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.vision.saliency import cnn_bytes

PAGE = resource_dir("calibration") / "pages/receipt.png"
TOTAL = "what is the total?"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


@pytest.mark.parametrize("keep", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("reduce", READ_BY["keep"])
def test_reductions_keep_no_more_than_the_plan_counts(pipeline: Pipeline, reduce: str, keep: float) -> None:
    spec = pipeline.bundle.manifest.model
    answer = pipeline.ask(PAGE, TOTAL, AskOptions(reduce=reduce, keep=keep, max_new_tokens=1))
    views = 1 + len(answer.tiles)
    planned = visual_of_tiles(spec.vision, spec.geometry, tiles=len(answer.tiles), images=1, keep=keep).tokens
    assert answer.tokens.visual_before == views * 64
    assert answer.tokens.visual_after <= planned == views * kept_tokens(64, keep)
    if reduce != "downsample":
        assert answer.tokens.visual_after == planned


def test_tokens_chosen_by_a_question_serve_no_other(pipeline: Pipeline) -> None:
    options = AskOptions(reduce="cdpruner", keep=0.3, max_new_tokens=1)
    first = pipeline.ask(PAGE, TOTAL, options)
    other = pipeline.ask(PAGE, "how many circles are there?", options)
    again = pipeline.ask(PAGE, TOTAL, options)
    assert first.members != other.members
    assert first.members == again.members
    assert (other.timings_ms["vision"] > 0, again.timings_ms["vision"]) == (True, 0)


def test_tokens_that_no_question_chooses_serve_every_one(pipeline: Pipeline) -> None:
    options = AskOptions(reduce="landmark", keep=0.3, max_new_tokens=1)
    first = pipeline.ask(PAGE, TOTAL, options)
    other = pipeline.ask(PAGE, "how many circles are there?", options)
    assert first.members == other.members
    assert other.timings_ms["vision"] == 0


def test_novelty_encodes_the_global_view_once(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = pipeline._encoder.encode

    def counted(arrays: Any) -> Any:
        seen.append(len(arrays["pixel_values"]))
        return encode(arrays)

    monkeypatch.setattr(pipeline._encoder, "encode", counted)
    answer = pipeline.ask(PAGE, TOTAL, AskOptions(saliency="novelty", max_new_tokens=1))
    assert seen == [1, len(answer.tiles)]
    assert len(answer.tiles) == 6
    boxes = tuple(tile.box for tile in answer.tiles)
    given = pipeline.ask(PAGE, TOTAL, AskOptions(tiles=boxes, max_new_tokens=1))
    assert (given.text, given.members) == (answer.text, answer.members)
    small = np.zeros((50, 60, 3), np.uint8)
    seen.clear()
    assert pipeline.ask(small, TOTAL, AskOptions(saliency="novelty", max_new_tokens=1)).tiles == ()
    assert seen == [1]


def test_sources_choose_different_tiles_and_the_right_one_reads(pipeline: Pipeline) -> None:
    found = {name: pipeline.ask(PAGE, TOTAL, AskOptions(saliency=name)) for name in SALIENCIES}
    assert len({tuple(tile.box for tile in answer.tiles) for answer in found.values()}) == 3
    assert found["cnn"].text == found["detail"].text == "763.07"


def test_a_model_from_a_file_is_the_network(pipeline: Pipeline, tmp_path: Path) -> None:
    copy = tmp_path / "mine.onnx"
    copy.write_bytes(pipeline.bundle.path("saliency.graph").read_bytes())
    own = pipeline.ask(PAGE, TOTAL, AskOptions(saliency="cnn"))
    named = pipeline.ask(PAGE, TOTAL, AskOptions(saliency_model=str(copy)))
    assert own.tiles == named.tiles
    with pytest.raises(BadInput, match="does not exist"):
        pipeline.ask(PAGE, TOTAL, AskOptions(saliency_model=str(tmp_path / "none.onnx")))


def test_a_network_is_part_of_the_plan(pipeline: Pipeline) -> None:
    header = source_header(PAGE, 10**9)
    plain, network = (
        plan(pipeline.bundle, AskOptions(saliency=name), images=(header,), budget_bytes=1 << 40)
        for name in ("detail", "cnn")
    )
    item = next(item for item in network.items if item.name == "saliency.network")
    assert item.bytes == cnn_bytes(pipeline.bundle.path("saliency.graph").stat().st_size)
    assert {name: network.phases[name] - plain.phases[name] for name in plain.phases} == {
        name: item.bytes if name != "load" else 0 for name in plain.phases
    }


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"saliency": "edges"}, "--saliency has no value 'edges'"),
        ({"saliency": "detail", "saliency_model": "m.onnx"}, "--saliency detail reads no --saliency-model"),
        ({"saliency": "cnn", "tiling": "grid"}, "--tiling grid chooses no tiles by saliency"),
        ({"saliency_model": "m.onnx", "tiles": ((0, 0, 9, 9),)}, "choose nothing"),
    ],
)
def test_choices_that_exclude_each_other_are_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(BadInput, match=what) as caught:
        AskOptions(**options)
    assert caught.value.remedy


def test_families_allow_what_their_merge_site_does() -> None:
    for name in discover.names("models"):
        family = discover.family(name)
        assert allowed_reductions(family) == (REDUCTIONS if family.reducible else ("none",))


def test_verify_opens_the_network(tmp_path: Path) -> None:
    copy = tmp_path / "nano"
    shutil.copytree(NANO, copy)
    assert next(check for check in verify_bundle(copy).checks if check.name == "load saliency").ok
    with locked(copy) as stage:
        (stage / "saliency").mkdir()
        shutil.copyfile(copy / "vision/cpu/model.onnx", stage / "saliency/model.onnx")
        manifest = open_bundle(copy).manifest
        publish(copy, stage, [Staged("saliency/model.onnx", SALIENCY_ROLE)], manifest, old=manifest)
    broken = next(check for check in verify_bundle(copy).checks if check.name == "load saliency")
    assert broken.ok is False
    assert "takes tensor(float)" in broken.note
