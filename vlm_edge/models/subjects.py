"""A config.json, alone or with what lies beside it -> what the planner is asked about."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from vlm_edge.core import discover
from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.geometry import Geometry
from vlm_edge.core.shards import TensorRef
from vlm_edge.core.specs import ModelSpec
from vlm_edge.memory.request import Subject
from vlm_edge.models.decoders import PLAIN_DECODERS, text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.tensor_parts import stored_decoder

_TIED_BY_DEFAULT = frozenset({"gemma", "gemma2"})
"""Whose configuration class ties the embedding where the file is silent."""


def subject_from(
    name: str,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None = None,
    *,
    family: str | None = None,
    tensors: Iterable[TensorRef] | None = None,
) -> Subject:
    """Sizes of a vision-language model, or of a text model alone.

    preprocessor: preprocessor_config.json; None: what the family's checkpoints usually say.  family: where it is known.
    tensors: the headers of stored weights, which must agree with the config, and whose bytes count where they are packed.
    Raises BadInput that names the field, or the nearest supported model type.
    """
    kind = config.get("model_type")
    if family is None and isinstance(kind, str) and kind in PLAIN_DECODERS:
        fields = Fields(config, {"tie_word_embeddings": kind in _TIED_BY_DEFAULT})
        text = text_spec(fields, kind, tied=fields.flag("tie_word_embeddings"))
        return Subject(name, text, stored=stored_decoder(tensors, text) if tensors is not None else {})
    found = discover.family(family) if family else discover.family_of(config)
    spec = found.spec(config)
    subject = Subject.of(name, spec, _geometry(found, spec, config, preprocessor))
    subject = replace(subject, free_tiles=found.free_tiles, chosen_tiles=found.chosen_tiles)
    return subject if tensors is None else replace(subject, stored=stored_decoder(tensors, spec.text))


def _geometry(
    family: VlmFamily, spec: ModelSpec, config: Mapping[str, Any], preprocessor: Mapping[str, Any] | None
) -> Geometry:
    """How the family cuts images; the spec's one view where it has no preprocessing of its own."""
    found = discover.family_part(family.name, "settings")
    if found is None:
        return spec.geometry
    if preprocessor is None:
        assumed = discover.family_part(family.name, "assumed")
        preprocessor = assumed.preprocessor(spec) if assumed is not None else {}
    geometry: Geometry = found.settings_from(config, preprocessor).geometry
    return geometry
