"""A pipeline without a model: it looks answers up, keeps what it was asked, and can be told to fail."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from vlm_edge.core.bundle import Limits, RunDefaults
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.errors import BadImage, VlmEdgeError
from vlm_edge.pipeline.answering.answer import Answer, TokenCounts
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.view_memory import ViewMemory
from vlm_edge.vision.grounding import LabelledBox


@dataclass
class FakePipeline:
    """answers: by question, else `default`.  fails_on: name of an image for which `failure` is raised.

    As the real one does, the first question about an image reports a time for vision and later ones 0.
    """

    answers: dict[str, str] = field(default_factory=dict)
    default: str = ""
    fails_on: str = ""
    failure: type[VlmEdgeError] = BadImage
    device: str = "cpu"
    boxes: tuple[LabelledBox, ...] = ()
    calls: list[tuple[str, str, AskOptions | None]] = field(default_factory=list)

    @property
    def bundle(self) -> SimpleNamespace:
        model = SimpleNamespace(family="llava", geometry=TokenGeometry(112, (8, 8), 1))
        manifest = SimpleNamespace(
            name="fake", self_sha256="0" * 64, limits=Limits(6, 768), defaults=RunDefaults(), model=model
        )
        return SimpleNamespace(manifest=manifest)

    def remember_views(self) -> ViewMemory:
        """It has none."""
        return ViewMemory()

    def ask(self, image: Path, question: str, options: AskOptions | None = None) -> Answer:
        if image.name == self.fails_on:
            raise self.failure(f"{image.name} is damaged", remedy="copy it again")
        first = all(name != image.name for name, _, _ in self.calls)
        self.calls.append((image.name, question, options))
        times = {"load": 500.0 * (len(self.calls) == 1), "vision": 40.0 * first, "decode": 10.0}
        return Answer(
            text=self.answers.get(question, self.default),
            tokens=TokenCounts(visual_before=448, visual_after=112, prompt=130, generated=4),
            tiles=(),
            boxes=self.boxes,
            points=(),
            timings_ms=times | {"total": sum(times.values())},
            planned_peak_bytes=300,
            measured_peak_bytes=200 + len(self.calls),
            stop_reason="eos",
            bundle="fake",
            device="cpu",
        )


def write_rows(folder: Path, rows: Sequence[dict[str, object]]) -> Path:
    """data.jsonl with `rows`, beside the images they name, which are no images: FakePipeline opens none."""
    for row in rows:
        image = str(row["image"])
        (folder / image).write_bytes(image.encode())
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
