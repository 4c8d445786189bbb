"""Samples -> what the decoder reads: the family's prompt, or a stop-gap, around features of the checkpoint's own tower."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from vlm_edge.core.bundle import Bundle, Limits, Manifest, RunDefaults, reference
from vlm_edge.core.bundle_writer import CONFIGURATION
from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models.decoder_layers import StreamedDecoder
from vlm_edge.models.weights import load_parts
from vlm_edge.quant.calibrate import Sample
from vlm_edge.quant.memory_limit import MemoryLimit, release
from vlm_edge.quant.sequences import CalibrationSequence, Placement
from vlm_edge.vision.sources import load_image

MIN_JUDGED = 2
HELD_OUT_EVERY = 4
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
        from tokenizers import Tokenizer

        path = checkpoint.root / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_buffer(path.read_bytes())
        except Exception as cause:  # its errors share no class of their own
            raise BadInput(f"{path} cannot be read: {cause}", remedy="download the tokenizer too") from cause
        special = checkpoint.optional_json("tokenizer_config.json") or {}
        name = special.get("bos_token")
        name = name.get("content") if isinstance(name, dict) else name
        found = self._tokenizer.token_to_id(name) if isinstance(name, str) else None
        self.first = [] if found is None else [int(found)]

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, none added around it."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids) if text else []


class FamilyPrompt:
    """The prompt that `run` will make, by the family's own PromptBuilder; the answer follows it."""

    def __init__(self, builder: Any, tokenizer: TextTokenizer, decoder: StreamedDecoder) -> None:
        self._builder, self._tokenizer, self._decoder = builder, tokenizer, decoder

    def sequence(self, sample: Sample, image: ImageInputs | None, features: Features) -> CalibrationSequence:
        """The chat template around the text, with the image where the template puts it."""
        try:
            tokens = self._builder.tokens(sample.text, images=int(image is not None))
        except BadInput as cause:
            raise SkippedSample("no_question") from cause
        views = [[view.numpy() for view in features]] if image is not None else []
        rows = torch.from_numpy(np.ascontiguousarray(self._builder.splice(tokens, views)))
        behind = len(tokens) - 1 - tokens.index(self._builder.image_id) if image is not None else len(tokens)
        answer = self._tokenizer.ids(sample.answer)
        hidden = torch.cat([rows, self._decoder.embed(answer)]) if answer else rows
        return CalibrationSequence(hidden, Placement(hidden.shape[0], judged_from=max(0, rows.shape[0] - behind - 1)))


class PlainPrompt:
    """Stop-gap for families whose prompt is not written yet, and the way of text models: start token, image, text, answer.

    Layouts that a family builds around its views (newlines, markers, rows) are missing; the features themselves, their number
    and their positions are right.
    """

    def __init__(
        self, tokenizer: TextTokenizer, decoder: StreamedDecoder, *, bidirectional_prefix: bool = False
    ) -> None:
        self._tokenizer, self._decoder, self._bidirectional = tokenizer, decoder, bidirectional_prefix

    def sequence(self, sample: Sample, image: ImageInputs | None, features: Features) -> CalibrationSequence:
        """Everything one after the other."""
        first, text = self._tokenizer.first, self._tokenizer.ids(sample.text)
        answer = self._tokenizer.ids(sample.answer)
        visual = sum(view.shape[0] for view in features)
        if not text:
            raise SkippedSample("no_tokens")
        parts = [self._decoder.embed(first)] if first else []
        hidden = torch.cat([*parts, *features, self._decoder.embed([*text, *answer])])
        grid = None if image is None else image.layout.grid_thw
        before = len(first) + visual
        return CalibrationSequence(
            hidden,
            Placement(
                length=hidden.shape[0],
                positions=self._decoder.positions(len(first), visual, hidden.shape[0], grid),
                prefix=before + len(text) if self._bidirectional else 0,
                judged_from=max(0, before - 1) if visual else 0,
            ),
        )


def prompt_for(
    checkpoint: Checkpoint, family: VlmFamily, spec: ModelSpec, decoder: StreamedDecoder, embedding: Path
) -> Prompt:
    """The family's own prompt where it has one; embedding: llm/embed.safetensors, as its files will stand in the bundle."""
    tokenizer = TextTokenizer(checkpoint)
    if family.prompt is None:
        return PlainPrompt(tokenizer, decoder, bidirectional_prefix=spec.text.bidirectional_prefix)
    try:
        return FamilyPrompt(family.prompt(_as_bundle(checkpoint, spec, embedding)), tokenizer, decoder)
    except DamagedBundle as cause:
        raise BadInput(
            f"no prompts can be made for {checkpoint.root}: {cause.message}", remedy="download all of the checkpoint"
        ) from cause


def _as_bundle(checkpoint: Checkpoint, spec: ModelSpec, embedding: Path) -> Bundle:
    """The checkpoint's files as the bundle that they will be part of, for a PromptBuilder."""
    root = checkpoint.root.resolve()
    artifacts = [reference(root, name, role=role) for role, name in CONFIGURATION.items() if (root / name).is_file()]
    table = reference(embedding.parent, embedding.name, role="llm.embedding")
    manifest = Manifest(
        schema_version=1, name=root.name, source={}, tools={}, model=spec,
        limits=Limits(max_tiles=0, max_model_len=spec.text.max_positions), defaults=RunDefaults(),
        artifacts=(*artifacts, _elsewhere(table, embedding)),
    )  # fmt: skip
    return Bundle(root, manifest)


def _elsewhere(artifact: Any, path: Path) -> Any:
    """An absolute path takes the place of the bundle's root when the two are joined."""
    from dataclasses import replace

    return replace(artifact, path=str(path.resolve()))


class Tower:
    """A checkpoint's vision tower and projector in fp32."""

    def __init__(self, checkpoint: Checkpoint, family: str, images: Any, settings: Any, device: str) -> None:
        components = importlib.import_module(f"vlm_edge.models.{family}.components")
        model = load_parts(checkpoint, components.PARTS, dtype=torch.float32)
        self._module = components.VisionAndProjector(model).to(device)
        self._images, self._settings, self._device = images, settings, device
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
