"""A bundle's decoder: does it load as the decoder that the manifest describes, and are its logits finite?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vlm_edge.core import discover
from vlm_edge.core.contracts import LlmEngine
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit, MissingDependency
from vlm_edge.pipeline.checks import Check, Part, not_checked

REFERENCES = "llm.references"
POSITIONS = 4


def decoder_checks(part: Part) -> Iterator[Check]:
    """All that can be asked of one target's decoder here; a target that this machine cannot run is not checked."""
    text = part.bundle.manifest.model.text
    try:
        engine = discover.backend("onnx").engine(part.path, text, part.graph.target, part.threads, POSITIONS)
    except (BadInput, MissingDependency, DoesNotFit) as cause:
        yield not_checked(part.name, cause.message)
        return
    except DamagedBundle as cause:
        yield Check(f"load {part.name}", False, note=cause.message)
        return
    yield Check(f"load {part.name}", True)
    embeds = np.random.default_rng(0).normal(scale=0.02, size=(POSITIONS, text.hidden)).astype(np.float32)
    try:
        logits = engine.forward(embeds)
    except DoesNotFit as cause:
        yield not_checked(f"finite {part.name}", cause.message)
        return
    except DamagedBundle as cause:
        yield Check(f"finite {part.name}", False, note=cause.message)
        return
    wrong = int(np.count_nonzero(~np.isfinite(logits)))
    yield Check(f"finite {part.name}", wrong == 0, wrong, 0)
    engine.rewind(0)
    yield from _against_references(part, engine)


def _against_references(part: Part, _engine: LlmEngine) -> Iterator[Check]:
    """The engine against rows that were stored with it, one check for each metric: here decoders' references join in."""
    stored = [a for a in part.bundle.manifest.artifacts if a.role == REFERENCES and a.target == part.graph.target]
    why = "this version compares no decoders" if stored else "the bundle holds no references of its decoder"
    yield not_checked(f"parity {part.name}", why)
