"""Samples -> what the decoder reads: the family's prompt around features of the checkpoint's own tower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vlm_edge.core.bundle import Bundle, reference
from vlm_edge.core.bundle_writer import Staged
from vlm_edge.core.calibration import HELD_OUT_EVERY
from vlm_edge.core.chat import special_tokens
from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.contracts import Floats, Span
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models.bundle_files import open_tokenizer
from vlm_edge.models.decoder_layers import StreamedDecoder
from vlm_edge.models.text_weights import write_embedding
from vlm_edge.models.weights import load_parts
from vlm_edge.pipeline.exporting.export import copied, manifest_of, newline_file
from vlm_edge.pipeline.exporting.llm import EMBEDDING
from vlm_edge.pipeline.exporting.source import Source
from vlm_edge.quant.calibrate import Sample
from vlm_edge.quant.memory_limit import MemoryLimit, release
from vlm_edge.quant.sequences import CalibrationSequence, Placement
from vlm_edge.vision.sources import load_image

MIN_JUDGED = 2
Features = list[torch.Tensor]
"""Of one image: a tensor [P, Dl] for each view."""


class SkippedSample(Exception):
    """A sample that cannot be used; its text is the name under which it is counted."""


class Prompt(Protocol):
    """How a text, its answer and an image become one sequence."""

    def sequence(self, sample: Sample, image: ImageInputs | None, features: Features) -> CalibrationSequence:
        """Raises SkippedSample."""
        ...


class TextTokenizer:
    """A checkpoint's tokenizer.json; raises BadInput where there is none that can be read."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        try:
            self._tokenizer = open_tokenizer(checkpoint.root / "tokenizer.json")
        except DamagedBundle as cause:
            raise BadInput(f"{checkpoint.root}: {cause.message}", remedy="download the tokenizer too") from cause
        first = special_tokens(checkpoint.optional_json("tokenizer_config.json") or {})["bos_token"]
        found = self._tokenizer.token_to_id(first) if first else None
        self.first = [] if found is None else [int(found)]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, none added around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []


class FamilyPrompt:
    """The prompt that `run` will make, by the family's own PromptBuilder; the answer follows it."""

    def __init__(self, source: Source, stage: Path) -> None:
        """stage: an empty folder, to which the files are written that a bundle of this model would have for its prompts.

        Raises BadInput for files that are missing or cannot be used.
        """
        self._root, self._tokenizer = source.checkpoint.root, TextTokenizer(source.checkpoint)
        self._bidirectional = source.spec.text.bidirectional_prefix
        build = source.family.prompt
        if build is None:
            raise BadInput(
                f"models of the family {source.family.name} have no prompt here",
                remedy="use --method rtn, which needs none",
            )
        with self._of_a_checkpoint():
            self._builder = build(_as_bundle(source, stage))

    def sequence(self, sample: Sample, image: ImageInputs | None, features: Features) -> CalibrationSequence:
        """The chat template around the text, with the image's views, markers and newlines as the family has them."""
        with self._of_a_checkpoint():
            try:
                tokens = self._builder.tokens(sample.text, [] if image is None else [image.layout])
            except BadInput as cause:
                raise SkippedSample("no_question") from cause
            views = [view.numpy() for view in features]
            runs = [] if image is None else self._builder.runs(views, image.layout)
            parts, spans = self._laid_out(tokens, runs, image)
            judged_from = max(0, sum(map(len, parts[: _behind_images(spans)])) - 1)
            length = sum(map(len, parts))
            if answer := self._tokenizer.ids(sample.answer):
                parts.append(self._builder.text.embed(answer))
                spans.append((len(answer), None))
            positions = self._builder.positions(spans)
        hidden = torch.from_numpy(np.concatenate(parts))
        return CalibrationSequence(
            hidden,
            Placement(
                length=len(hidden),
                positions=None if positions is None else torch.from_numpy(np.ascontiguousarray(positions)),
                prefix=length if self._bidirectional else 0,
                judged_from=judged_from,
            ),
        )

    def _laid_out(
        self, tokens: Sequence[int], runs: Sequence[Floats], image: ImageInputs | None
    ) -> tuple[list[Floats], list[Span]]:
        """Embeddings of each stretch of text and of each run, in the prompt's order, and what each is."""
        parts: list[Floats] = []
        spans: list[Span] = []
        left = iter(runs)
        for visual, group in groupby(tokens, lambda token: token == self._builder.image_id):
            stretch = list(group)
            found = [next(left) for _ in stretch] if visual else [self._builder.text.embed(stretch)]
            parts += found
            spans += [(len(part), image.layout if visual and image else None) for part in found]
        return parts, spans

    @contextmanager
    def _of_a_checkpoint(self) -> Iterator[None]:
        try:
            yield
        except DamagedBundle as cause:
            raise BadInput(
                f"no prompts can be made for {self._root}: {cause.message}", remedy="download all of the checkpoint"
            ) from cause


def _behind_images(spans: Sequence[Span]) -> int:
    """The first span behind the last image; 0 without one."""
    return max((index + 1 for index, (_, image) in enumerate(spans) if image is not None), default=0)


def _as_bundle(source: Source, stage: Path) -> Bundle:
    """The checkpoint's files as the bundle that they will be part of, for a PromptBuilder."""
    dtype = write_embedding(source.checkpoint, stage / EMBEDDING)
    files = [*copied(source.checkpoint, stage), Staged(EMBEDDING, "llm.embedding", dtype=dtype)]
    if part := getattr(source.components, "NEWLINE", None):
        model = load_parts(source.checkpoint, (part,), dtype=torch.float32)
        files += newline_file(source.components, model, stage)
    artifacts = tuple(reference(stage, file.path, role=file.role, dtype=file.dtype) for file in files)
    return Bundle(stage, replace(manifest_of(source, None), artifacts=artifacts))


class PlainPrompt:
    """The way of text models: start token, text, answer."""

    def __init__(self, tokenizer: TextTokenizer, decoder: StreamedDecoder) -> None:
        self._tokenizer, self._decoder = tokenizer, decoder

    def sequence(self, sample: Sample, image: ImageInputs | None, features: Features) -> CalibrationSequence:  # noqa: ARG002
        """Everything one after the other."""
        text = self._tokenizer.ids(sample.text)
        if not text:
            raise SkippedSample("no_tokens")
        hidden = self._decoder.embed([*self._tokenizer.first, *text, *self._tokenizer.ids(sample.answer)])
        return CalibrationSequence(hidden, Placement(len(hidden)))


class Tower:
    """A checkpoint's vision tower and projector in fp32."""

    def __init__(self, source: Source, device: str) -> None:
        components = source.components
        model = load_parts(source.checkpoint, components.PARTS, dtype=torch.float32)
        self._module = components.VisionAndProjector(model).to(device)
        self._images, self._settings, self._device = source.images, source.settings, device
        self._names = tuple(components.VisionAndProjector.axes)

    def prepare(self, path: Path) -> ImageInputs:
        """An image file as the family's preprocessing makes it; raises BadImage."""
        prepared: ImageInputs = self._images.prepare(load_image(path).pixels, self._settings)
        return prepared

    def features(self, image: ImageInputs) -> Features:
        """[P, Dl] for each view."""
        pack = getattr(self._images, "pack", None)
        arrays = pack([image], self._settings) if pack else image.arrays
        with torch.no_grad():
            found = self._module(**{name: torch.from_numpy(arrays[name]).to(self._device) for name in self._names})
        found = found.cpu()
        return list(found) if found.ndim == 3 else [found]


def build_sequences(
    samples: Sequence[Sample], prompt: Prompt, tower: Callable[[], Tower] | None, *, seqlen: int, limit: MemoryLimit,
    on_sample: Callable[[], None] = lambda: None,
) -> tuple[list[CalibrationSequence], dict[str, int]]:  # fmt: skip
    """Sequences of at most `seqlen` tokens, and what became of the samples.

    A longer one is cut at its end; one whose image alone fills it is left out; both are counted.
    Raises BadInput when fewer than two are left: one to calibrate on and one to judge by.
    """
    eyes = tower() if tower and any(sample.image for sample in samples) else None
    counts: Counter[str] = Counter(read=len(samples))
    found, longest = [], 0
    for sample in samples:
        try:
            sequence = _sequence(sample, prompt, eyes)
            longest = max(longest, sequence.placement.judged_from + MIN_JUDGED)
            found.append(_fitted(sequence, seqlen, counts))
            counts["with_image"] += sample.image is not None
        except SkippedSample as why:
            counts[f"skipped_{why}"] += 1
        limit.check()
        on_sample()
    del eyes
    release(cycles=True)
    counts["used"] = len(found)
    counts["tokens"] = sum(sequence.placement.length for sequence in found)
    if len(found) < 2:
        told = ", ".join(f"{name} {number}" for name, number in sorted(counts.items()) if name.startswith("skipped"))
        hint = f"--seqlen {longest} would hold every image" if longest > seqlen else "give more samples"
        raise BadInput(
            f"{len(found)} of {len(samples)} calibration samples can be used ({told}), 2 are needed", remedy=hint
        )
    return found, dict(counts)


def _sequence(sample: Sample, prompt: Prompt, eyes: Tower | None) -> CalibrationSequence:
    if sample.image is None:
        return prompt.sequence(sample, None, [])
    if eyes is None:
        raise SkippedSample("image_without_tower")
    try:
        image = eyes.prepare(sample.image)
    except BadInput as cause:
        raise BadInput(f"{sample.where}: {cause.message}", remedy=cause.remedy) from cause
    return prompt.sequence(sample, image, eyes.features(image))


def _fitted(sequence: CalibrationSequence, seqlen: int, counts: Counter[str]) -> CalibrationSequence:
    place = sequence.placement
    if place.length <= seqlen:
        return sequence
    if place.judged_from + MIN_JUDGED > seqlen:
        raise SkippedSample("image_longer_than_seqlen")
    counts["cut"] += 1
    counts["tokens_cut"] += place.length - seqlen
    positions = None if place.positions is None else place.positions[:, :seqlen].clone()
    kept = Placement(seqlen, positions, min(place.prefix, seqlen), place.judged_from)
    return CalibrationSequence(sequence.hidden[:seqlen].clone(), kept)


def split(sequences: Sequence[CalibrationSequence]) -> tuple[list[CalibrationSequence], list[CalibrationSequence]]:
    """(to calibrate on, held out): every fourth is held out, the last of two or three.

    So many because only text tokens are judged, which a question about an image has few of.
    """
    if len(sequences) < HELD_OUT_EVERY:
        return list(sequences[:-1]), list(sequences[-1:])
    held = range(HELD_OUT_EVERY - 1, len(sequences), HELD_OUT_EVERY)
    return [s for i, s in enumerate(sequences) if i not in held], [sequences[i] for i in held]
