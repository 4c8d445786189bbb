"""The JSON that `run` prints."""

from __future__ import annotations

import json

from vlm_edge.pipeline.answering.answer import Answer, TokenCounts
from vlm_edge.vision.grounding import LabelledBox, LabelledPoint
from vlm_edge.vision.tiling import Tile


def test_json_has_the_documented_keys_and_plain_numbers() -> None:
    answer = Answer(
        text="42 €",
        tokens=TokenCounts(448, 112, 130, 3),
        tiles=(Tile(1, 2, 113, 114, 0.123456),),
        boxes=(LabelledBox("dot", (1, 2, 3, 4)),),
        points=(LabelledPoint("eye", (5, 6), clipped=True),),
        timings_ms={"load": 1.23456, "total": 2.0},
        planned_peak_bytes=10,
        measured_peak_bytes=9,
        stop_reason="eos",
        bundle="nano",
        device="cpu",
        members=((0, -1),),
    )
    assert json.loads(json.dumps(answer.to_json())) == {
        "answer": "42 €",
        "tokens": {"visual_before": 448, "visual_after": 112, "prompt": 130, "generated": 3},
        "tiles": [{"box": [1, 2, 113, 114], "score": 0.123}],
        "boxes": [{"label": "dot", "box": [1, 2, 3, 4], "clipped": False}],
        "points": [{"label": "eye", "point": [5, 6], "clipped": True}],
        "timings_ms": {"load": 1.23, "total": 2.0},
        "memory": {"planned_peak_bytes": 10, "measured_peak_bytes": 9},
        "stop_reason": "eos",
        "bundle": "nano",
        "device": "cpu",
    }
