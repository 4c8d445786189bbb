"""A LLaVA bundle's configuration files, each read into what prompts need of it, or DamagedBundle.

Hashes that fit do not make content fit: whoever wrote a file may have been wrong, or hostile.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.chat import ChatTemplate
from vlm_edge.core.contracts import Floats
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.core.load import read_text
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models.llava.spec import spec_from_config

REBUILD = "build the bundle again"
DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}USER: {% for part in message.content %}"
    "{% if part.type == 'image' %}{{ '<image>\n' }}{% else %}{{ part.text }}{% endif %}"
    "{% endfor %} ASSISTANT:{% endfor %}"
)
"""LLaVA-1.5's form of one question, as its authors document it, for checkpoints without a template."""
_MAX_FACTOR = 1e6
_MOST_TOKENS = 1 << 32
_SIZES = (
    "geometry.view_px", "geometry.grid", "geometry.separator_tokens", "text.hidden", "text.layers", "text.heads",
    "text.kv_heads", "text.head_dim", "text.vocab",
)  # fmt: skip
"""What config.json and manifest must agree in; a graph alone does not tell how 64 tokens are laid out, for instance."""


def read_object(bundle: Bundle, role: str) -> Mapping[str, Any]:
    """A JSON file of a bundle that holds one object."""
    path = bundle.path(role)
    try:
        content = json.loads(read_text(path, error=DamagedBundle))
    except (ValueError, RecursionError) as cause:
        raise DamagedBundle(f"{path.name} cannot be read: {cause}", remedy=REBUILD) from cause
    if not isinstance(content, dict):
        raise DamagedBundle(f"{path.name} holds a {type(content).__name__}, no object", remedy=REBUILD)
    return content


def tokenizer(bundle: Bundle) -> Any:
    """The `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer

    path = bundle.path("tokenizer")
    try:
        # Not from_file(): that takes no path which is not UTF-8.
        return Tokenizer.from_buffer(path.read_bytes())
    except Exception as cause:  # its errors share no class of their own
        raise DamagedBundle(f"{path.name} cannot be read: {cause}", remedy=REBUILD) from cause


def template(bundle: Bundle) -> ChatTemplate:
    """The bundle's chat template, or the family's own where it has none."""
    has_own = any(artifact.role == "chat_template" for artifact in bundle.manifest.artifacts)
    source = read_text(bundle.path("chat_template"), error=DamagedBundle) if has_own else DEFAULT_TEMPLATE
    return ChatTemplate(source, read_object(bundle, "tokenizer_config"))


def embedding(bundle: Bundle) -> EmbeddingTable:
    """The input embeddings, in the manifest's vocabulary and width."""
    table, text = EmbeddingTable(bundle.path("llm.embedding")), bundle.manifest.model.text
    if table.shape != (text.vocab, text.hidden):
        why = f"the embedding table is {table.shape[0]} x {table.shape[1]}, the manifest says {text.vocab} x {text.hidden}"
        raise DamagedBundle(why, remedy=REBUILD)
    return table


def normalisation(bundle: Bundle) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the three channels, [3] each, for pixels within 0..1."""
    images = read_object(bundle, "preprocessor_config")
    return _factors(images, "image_mean", least=0.0), _factors(images, "image_std", least=1 / _MAX_FACTOR)


def _factors(images: Mapping[str, Any], name: str, *, least: float) -> Floats:
    try:
        values = np.array(images[name], np.float64).reshape(3)
    except (KeyError, TypeError, ValueError, OverflowError) as cause:
        why = f"preprocessor_config.json has no {name} of three numbers: {cause!r}"
        raise DamagedBundle(why, remedy=REBUILD) from cause
    if not ((least <= values) & (values <= _MAX_FACTOR)).all():
        raise DamagedBundle(f"preprocessor_config.json has {name} {values.tolist()}", remedy=REBUILD)
    return values.astype(np.float32)


def image_id(bundle: Bundle, tokenizer: Any) -> int:
    """The placeholder's token."""
    index = read_object(bundle, "config").get("image_token_index")
    if type(index) is not int or not 0 <= index < _MOST_TOKENS or tokenizer.id_to_token(index) is None:
        raise DamagedBundle("config.json has no image_token_index that is a token", remedy=REBUILD)
    return index


def end_ids(bundle: Bundle) -> frozenset[int]:
    """Tokens that end an answer."""
    named = read_object(bundle, "generation_config").get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    if not ids or any(type(index) is not int for index in ids):
        raise DamagedBundle("generation_config.json has no eos_token_id that is a token", remedy=REBUILD)
    return frozenset(ids)


def view_ids(bundle: Bundle, tokenizer: Any) -> list[int]:
    """Markers of the global view and of the tiles; empty for a model that was trained without."""
    named = bundle.manifest.recipe.get("view_tokens", ())
    if not isinstance(named, list | tuple) or not all(isinstance(token, str) for token in named):
        raise DamagedBundle("the manifest's view_tokens are no list of tokens", remedy=REBUILD)
    for token in named:
        if tokenizer.token_to_id(token) is None:
            raise DamagedBundle(f"the tokenizer has no token {token[:60]!r}", remedy=REBUILD)
    return [int(tokenizer.token_to_id(token)) for token in named]


def check_sizes(bundle: Bundle, *, markers: bool) -> None:
    """Raise DamagedBundle where the manifest's sizes are not those of config.json; markers: each view has one."""
    try:
        told = spec_from_config(read_object(bundle, "config"))
    except BadInput as cause:
        raise DamagedBundle(cause.message, remedy=REBUILD) from cause
    told = replace(told, geometry=replace(told.geometry, separator_tokens=int(markers)))
    for name in _SIZES:
        part, field = name.split(".")
        said, true = (getattr(getattr(spec, part), field) for spec in (bundle.manifest.model, told))
        if said != true:
            raise DamagedBundle(f"the manifest says {name} {said}, config.json says {true}", remedy=REBUILD)
