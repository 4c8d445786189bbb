"""One image asked in many ways: what they have in common is done once, and its time is counted every time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.run import Pipeline


class SharedVision:
    """A pipeline that remembers views, as an Asker; the time that was saved is added to an answer's stages and total."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._memory = pipeline.remember_views()

    def ask(self, image: Path | list[Path], question: str, options: AskOptions | None = None) -> Answer:
        """The pipeline's own answer, with the times that it would have taken alone."""
        before = dict(self._memory.saved_ms)
        answer = self._pipeline.ask(image, question, options)
        saved = {stage: value - before[stage] for stage, value in self._memory.saved_ms.items()}
        told = dict(answer.timings_ms)
        for stage in (*saved, "total"):
            told[stage] = told.get(stage, 0.0) + saved.get(stage, sum(saved.values()))
        return replace(answer, timings_ms=told)
