"""MODEL, wherever it lies: which model it is, of which family, and how its images are prepared. Reads no weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from vlm_edge.core import discover
from vlm_edge.core.bundle import Bundle
from vlm_edge.core.checkpoint import PREPROCESSOR, Checkpoint, find_preprocessor, open_checkpoint
from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput, DamagedBundle, DamagedInstallation
from vlm_edge.models.bundle_files import open_tokenizer, read_object
from vlm_edge.pipeline.exporting import hub


@dataclass(frozen=True)
class Source:
    """A checkpoint that can be exported.

    settings, images: how its images are prepared, and the module that does it.  hashes: which model it is.
    origin: its id on the hub and the commit, where it comes from there.
    """

    checkpoint: Checkpoint
    family: VlmFamily
    spec: ModelSpec
    settings: Any
    images: Any
    hashes: Mapping[str, str]
    origin: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The folder's name; of a model of the hub the name without the organisation."""
        return self.origin.get("model", "").partition("/")[2] or self.checkpoint.root.resolve().name

    @property
    def components(self) -> Any:
        """The family's module of torch components; needs the `build` extra."""
        return family_module(self.family, "components")


def describe(
    model: str | os.PathLike[str],
    *,
    revision: str = "",
    offline: bool = False,
    on_step: Callable[[str], None] | None = None,
    bars: bool = True,
) -> Source:
    """Open a checkpoint.  model: a folder, or `organisation/name` on the hub.  The others are hub.fetch's.

    Raises BadInput for whatever is missing, damaged or not supported, MissingDependency.
    """
    root, origin = located(model, revision=revision, offline=offline, on_step=on_step, bars=bars)
    return of_checkpoint(open_checkpoint(root), origin)


def located(
    model: str | os.PathLike[str],
    *,
    revision: str = "",
    offline: bool = False,
    on_step: Callable[[str], None] | None = None,
    bars: bool = True,
    accept: hub.Accept = discover.family_of,
) -> tuple[Path, dict[str, str]]:
    """The folder of a checkpoint, fetched where it is a model of the hub, and then its id there and the commit.

    As for describe; accept: hub.fetch's.
    """
    name = os.fspath(model)
    if hub.is_id(name):
        fetched = hub.fetch(name, revision=revision, offline=offline, on_step=on_step, bars=bars, accept=accept)
        return fetched.root, {"model": fetched.model, "revision": fetched.revision}
    if revision:
        raise BadInput(f"--revision is for models of the hub; {name} is none", remedy="leave it out")
    return Path(name), {}


def of_checkpoint(checkpoint: Checkpoint, origin: Mapping[str, str]) -> Source:
    """What an open checkpoint is; raises as describe does."""
    family = discover.family_of(checkpoint.config)
    if not discover.has_part(family.name, "components"):
        raise BadInput(
            f"models of the family {family.name} can be planned, not exported",
            remedy="use a checkpoint of another family",
        )
    images, settings = image_settings(family, checkpoint.config, preprocessor(checkpoint))
    spec = family.spec(checkpoint.config)
    rules = family_module(family, "prompt").RULES
    settings = rules.refine(settings, spec, _tokenizer(checkpoint.root))
    spec = replace(spec, geometry=settings.geometry)
    return Source(checkpoint, family, spec, settings, images, source_hashes(checkpoint), origin)


def _tokenizer(root: Path) -> Any | None:
    """The checkpoint's tokenizer, which says how long markers are; None without one, or with one that cannot be read."""
    try:
        return open_tokenizer(root / "tokenizer.json")
    except DamagedBundle:
        return None


def image_settings(family: VlmFamily, config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> tuple[Any, Any]:
    """The family's module for images and its settings, from config.json and preprocessor_config.json."""
    images = family_module(family, "images")
    return images, images.settings_from(config, preprocessor)


def family_module(family: VlmFamily, part: str) -> Any:
    """A module of a family's folder, by its name; raises DamagedInstallation where the folder lacks it."""
    found = discover.family_part(family.name, part)
    if found is None:
        raise DamagedInstallation(
            f"the model family {family.name} has no {part}.py, without which its checkpoints cannot be exported",
            remedy=f"install vlm-edge again; in a family of your own, add it to models/{family.name}/ as models/llava/ has it",
        )
    return found


def bundle_images(bundle: Bundle) -> tuple[Any, Any]:
    """The same of a bundle, from the files that it took over.  Raises BadInput, DamagedBundle."""
    config, preprocessor = (read_object(bundle, role) for role in ("config", "preprocessor_config"))
    return image_settings(discover.family(bundle.manifest.model.family), config, preprocessor)


def preprocessor(checkpoint: Checkpoint) -> Mapping[str, Any]:
    """preprocessor_config.json, or what stands for it; raises BadInput where nothing does."""
    found = find_preprocessor(checkpoint.root)
    return checkpoint.json(PREPROCESSOR) if found is None else found


def source_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """Which model a checkpoint is, without reading its weights: SHA-256 of its config and of its tensors' names and shapes."""
    index = {name: [tensor.dtype, list(tensor.shape)] for name, tensor in checkpoint.tensors.items()}
    return {"config": _digest(dict(checkpoint.config)), "tensors": _digest(index)}


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def weights_hash(model: Any, parts: Sequence[str]) -> str:
    """SHA-256 of the parameters that were loaded, so that a fine-tune with the same shapes counts as another model."""
    from vlm_edge.models.layouts import within

    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        if within(name, parts):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().numpy()).data)
    return digest.hexdigest()
