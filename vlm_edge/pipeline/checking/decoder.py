"""A bundle's decoder: does it load as the decoder that the manifest describes, are its logits finite and as they were stored?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np

from vlm_edge.backends.onnx import decoder_parity
from vlm_edge.backends.onnx.parity import Parity
from vlm_edge.core import discover
from vlm_edge.core.contracts import LlmEngine
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit, MissingDependency
from vlm_edge.pipeline.checking.checks import Check, Part, limit_of, not_checked, of_parity, stored_file, without_limit

REFERENCES = "llm.references"
POSITIONS = 4


def decoder_checks(part: Part) -> Iterator[Check]:
    """All that can be asked of one target's decoder here; a target that this machine cannot run is not checked."""
    text = part.bundle.manifest.model.text
    try:
        stored = _stored(part)
    except DamagedBundle as cause:
        yield Check(f"parity {part.name}", False, note=cause.message)
        return
    context = POSITIONS if stored is None else max(POSITIONS, stored.embeds.shape[1])
    try:
        engine = discover.backend("onnx").engine(part.path, text, part.graph.target, part.threads, context)
    except (BadInput, MissingDependency, DoesNotFit) as cause:
        yield not_checked(part.name, cause.message)
        return
    except DamagedBundle as cause:
        yield Check(f"load {part.name}", False, note=cause.message)
        return
    yield Check(f"load {part.name}", True)
    embeds = np.random.default_rng(0).normal(scale=0.02, size=(POSITIONS, text.hidden)).astype(np.float32)
    positions = np.tile(np.arange(POSITIONS), (3, 1)) if text.mrope_sections else None
    try:
        logits = engine.forward(embeds, positions)
    except DoesNotFit as cause:
        yield not_checked(f"finite {part.name}", cause.message)
        return
    except DamagedBundle as cause:
        yield Check(f"finite {part.name}", False, note=cause.message)
        return
    wrong = int(np.count_nonzero(~np.isfinite(logits)))
    yield Check(f"finite {part.name}", wrong == 0, wrong, 0)
    yield from _against_references(part, engine, stored)


def _stored(part: Part) -> decoder_parity.DecoderReferences | None:
    path = stored_file(part, REFERENCES)
    return None if path is None else decoder_parity.load(path)


def _against_references(
    part: Part, engine: LlmEngine, stored: decoder_parity.DecoderReferences | None
) -> Iterator[Check]:
    """The engine against the logits that were stored with it, one check for each metric."""
    name = f"parity {part.name}"
    if stored is None:
        yield not_checked(name, "the bundle holds no references of its decoder")
        return
    if unlimited := without_limit(part):
        yield unlimited
        return
    text = part.bundle.manifest.model.text
    if stored.embeds.shape[2] != text.hidden or (stored.positions is not None) != bool(text.mrope_sections):
        yield Check(name, False, note="its references are those of another decoder")
        return
    try:
        parity = decoder_parity.compare(engine, stored, part.graph.dtype, limit=limit_of(part))
    except DamagedBundle as cause:
        yield Check(name, False, note=cause.message)
        return
    note = "" if parity.ok else _where(part, stored, parity)
    yield from (of_parity("parity", replace(row, component=part.name), note) for row in parity.results())


def _where(part: Part, stored: decoder_parity.DecoderReferences, parity: Parity) -> str:
    """The component, and the layer at which the graph leaves its references, where they tell."""
    if find_spec("onnx") is None:
        return f"{part.name} differs; to see at which layer, pip install 'vlm-edge[build]'"
    from vlm_edge.backends.onnx.decoder_divergence import BEHIND, first_divergence

    try:
        found = first_divergence(part.path, part.bundle.manifest.model.text, stored, limit=parity.limit.relative_error)
    except DamagedBundle as cause:
        return cause.message
    if found is None:
        return f"{part.name} differs; which layer cannot be told, since the bundle does not hold its layers' values"
    if found.layer == BEHIND:
        return f"{part.name} differs in {BEHIND}, behind its last layer"
    return f"it begins in {part.name} at {found.layer} (relative error {found.relative_error:.2e})"
