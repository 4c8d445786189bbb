"""A bundle's vision graph: does it load, are its values finite, are they those of its references and of torch?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx import references
from vlm_edge.backends.onnx.parity import Limit, Parity, first_divergence, measure
from vlm_edge.core.bundle import Bundle
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit, MissingDependency
from vlm_edge.pipeline.answering.encoders import TENSORRT, open_encoder
from vlm_edge.pipeline.checking.checks import Check, Part, limit_of, not_checked, of_parity, stored_file, without_limit
from vlm_edge.pipeline.exporting.example_inputs import tower_inputs
from vlm_edge.pipeline.exporting.source import Source, bundle_images, weights_hash

if TYPE_CHECKING:
    from vlm_edge.backends.onnx.observe import Observation

REFERENCES = "vision.references"
ASK_TORCH = "give MODEL to see where it begins"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class TorchReference:
    """What MODEL's own tower and projector compute on the calibration images.  weights: the hash of what was loaded."""

    weights: str
    observation: Observation


def torch_reference(model: Source, bundle: Bundle) -> TorchReference:
    """Load MODEL's tower and projector and run them in fp32; needs the `build` extra.  Raises BadInput."""
    import torch

    from vlm_edge.backends.onnx.observe import observe
    from vlm_edge.models.weights import load_parts

    components = model.components
    loaded = load_parts(model.checkpoint, components.PARTS, dtype=torch.float32)
    inputs = tower_inputs(*bundle_images(bundle), tuple(components.VisionAndProjector.axes))
    return TorchReference(
        weights_hash(loaded, components.PARTS), observe(components.VisionAndProjector(loaded), inputs)
    )


def vision_checks(part: Part, torch_says: TorchReference | None) -> Iterator[Check]:
    """All that can be asked of one target's graph here; a target that this machine cannot run is not checked."""
    try:
        encoder = _open(part)
    except (BadInput, MissingDependency) as cause:
        yield not_checked(part.name, cause.message)
        return
    except DamagedBundle as cause:
        yield Check(f"load {part.name}", False, note=cause.message)
        return
    yield Check(f"load {part.name}", True)
    try:
        inputs = tower_inputs(*bundle_images(part.bundle), tuple(getattr(encoder, "inputs", ("pixel_values",))))
        outputs = [_encoded(encoder, arrays) for arrays in inputs]
    except DoesNotFit as cause:
        yield not_checked(f"finite {part.name}", cause.message)
        return
    except (BadInput, DamagedBundle) as cause:
        yield Check(f"finite {part.name}", False, note=cause.message)
        return
    wrong = sum(int(np.count_nonzero(~np.isfinite(output))) for output in outputs)
    yield Check(f"finite {part.name}", wrong == 0, wrong, 0, note="" if not wrong else "values that are not finite")
    if unlimited := without_limit(part):
        yield unlimited
        return
    yield from _against_references(part, inputs, outputs, limit_of(part), located=torch_says is not None)
    if torch_says is not None:
        yield from _against_torch(part, torch_says.observation, inputs, outputs, limit_of(part))


def _open(part: Part) -> Any:
    if part.graph.target != TENSORRT:
        return open_encoder(part.bundle, part.graph.target, part.threads)
    from vlm_edge.backends.tensorrt.build import find_engine
    from vlm_edge.backends.tensorrt.runner import TensorRtEncoder

    # An engine that is there; ONNX Runtime's provider would build one, and checking writes nothing.
    return TensorRtEncoder(find_engine(part.path))


def _encoded(encoder: Any, arrays: Arrays) -> Floats:
    features: Floats = encoder.encode(next(iter(arrays.values())) if len(arrays) == 1 else arrays, check=False)
    return features


def _stored(part: Part) -> references.StoredReferences | None:
    path = stored_file(part, REFERENCES)
    return None if path is None else references.load(path)


def _against_references(
    part: Part, inputs: Sequence[Arrays], outputs: Sequence[Floats], limit: Limit, *, located: bool
) -> Iterator[Check]:
    name = f"parity {part.name}"
    try:
        stored = _stored(part)
        if stored is None:
            yield not_checked(name, "the bundle holds no references of its vision graph")
            return
        parity = references.check(stored, part.name, part.graph.dtype, inputs, outputs, limit=limit)
    except BadInput as cause:
        yield not_checked(name, cause.message)
    except DamagedBundle as cause:
        yield Check(name, False, note=cause.message)
    else:
        yield from (of_parity("parity", row, "" if located else ASK_TORCH) for row in parity.results())


def _against_torch(
    part: Part, observed: Observation, inputs: Sequence[Arrays], outputs: Sequence[Floats], limit: Limit
) -> Iterator[Check]:
    parity = measure(part.name, part.graph.dtype, outputs, observed.outputs, limit=limit)
    note = "" if parity.ok else _where(part, observed, inputs[0], parity)
    yield from (of_parity("torch", row, note) for row in parity.results())


def _where(part: Part, observed: Observation, inputs: Arrays, parity: Parity) -> str:
    """The component and the layer at which the graph leaves torch, as far as its layers can still be seen in it."""
    stored = _stored(part)
    values = stored.layer_values if stored else {}
    if part.graph.target == TENSORRT or not values:
        return f"{part.name} differs; which layer cannot be told, since the bundle does not name its layers' values"
    found = first_divergence(part.path, inputs, observed.layers, values, limit=parity.limit.relative_error)
    if found is None:
        return f"{part.name} differs behind its last layer that can be compared"
    return f"it begins in {part.name} at {found.layer} (relative error {found.relative_error:.2e})"
