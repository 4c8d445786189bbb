"""A bundle's configuration files, each read into what prompts need of it, or DamagedBundle.

Hashes that fit do not make content fit: whoever wrote a file may have been wrong, or hostile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vlm_edge.core.bundle import Bundle
from vlm_edge.core.chat import ChatTemplate
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.load import read_text
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput, DamagedBundle

REBUILD = "build the bundle again"
_MOST_TOKENS = 1 << 32
_SIZES = (
    "geometry.view_px", "geometry.grid", "geometry.separator_tokens", "text.hidden", "text.layers", "text.heads",
    "text.kv_heads", "text.head_dim", "text.vocab", "text.mrope_sections", "text.bidirectional_prefix",
)  # fmt: skip
"""What config.json and manifest must agree in; a graph alone does not tell how 64 tokens are laid out, for instance."""
T = TypeVar("T")


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


def optional_object(bundle: Bundle, role: str) -> Mapping[str, Any]:
    """The same, or an empty one where the bundle has no such file."""
    return read_object(bundle, role) if bundle.find(role) else {}


def settings(read: Callable[..., T], *sources: Any) -> T:
    """What a function that reads a checkpoint's files makes of a bundle's copies of them; its BadInput is DamagedBundle."""
    try:
        return read(*sources)
    except BadInput as cause:
        raise DamagedBundle(cause.message, remedy=REBUILD) from cause


def tokenizer(bundle: Bundle) -> Any:
    """The `tokenizers.Tokenizer`."""
    return open_tokenizer(bundle.path("tokenizer"))


def open_tokenizer(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of one file."""
    from tokenizers import Tokenizer

    try:
        # Not from_file(): that takes no path which is not UTF-8.
        return Tokenizer.from_buffer(path.read_bytes())
    except Exception as cause:  # its errors share no class of their own
        raise DamagedBundle(f"{path.name} cannot be read: {cause}", remedy=REBUILD) from cause


def template(bundle: Bundle, default: str) -> ChatTemplate:
    """The bundle's chat template, else the tokenizer's own, else the family's: `default`."""
    config = read_object(bundle, "tokenizer_config")
    if path := bundle.find("chat_template"):
        return ChatTemplate(read_text(path, error=DamagedBundle), config)
    own = config.get("chat_template")
    return ChatTemplate(own if isinstance(own, str) else default, config)


def embedding(bundle: Bundle) -> EmbeddingTable:
    """The input embeddings, in the manifest's vocabulary and width."""
    table, text = EmbeddingTable(bundle.path("llm.embedding")), bundle.manifest.model.text
    if table.shape != (text.vocab, text.hidden):
        why = f"the embedding table is {table.shape[0]} x {table.shape[1]}, the manifest says {text.vocab} x {text.hidden}"
        raise DamagedBundle(why, remedy=REBUILD)
    return table


def newline(bundle: Bundle) -> NDArray[np.float32]:
    """The vector [1, D] that ends a row of visual tokens."""
    table = EmbeddingTable(bundle.path("vision.newline"))
    if table.shape != (1, bundle.manifest.model.text.hidden):
        raise DamagedBundle(f"the newline vector is {table.shape[0]} x {table.shape[1]}", remedy=REBUILD)
    return table.rows([0])


def image_id(config: Mapping[str, Any], tokenizer: Any, *names: str) -> int:
    """The placeholder's token, under the first of `names` that config.json has."""
    name = next((name for name in names if name in config), names[0])
    index = config.get(name)
    if type(index) is not int or not 0 <= index < _MOST_TOKENS or tokenizer.id_to_token(index) is None:
        raise DamagedBundle(f"config.json has no {name} that is a token", remedy=REBUILD)
    return index


def end_ids(bundle: Bundle, config: Mapping[str, Any]) -> frozenset[int]:
    """Tokens that end an answer, from generation_config.json; without that file from config.json, as in transformers."""
    file, source = "generation_config.json", optional_object(bundle, "generation_config")
    if bundle.find("generation_config") is None:
        inner = config.get("text_config")
        file, source = "config.json", {**(inner if isinstance(inner, Mapping) else {}), **config}
    named = source.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    if not ids or any(type(index) is not int for index in ids):
        raise DamagedBundle(f"{file} has no eos_token_id that is a token", remedy=REBUILD)
    return frozenset(ids)


def check_sizes(bundle: Bundle, told: ModelSpec, geometry: TokenGeometry) -> None:
    """Raise DamagedBundle where the manifest's sizes are not those of the files: `told` by config.json, and `geometry`."""
    model = bundle.manifest.model
    sides = {"geometry": (model.geometry, geometry), "text": (model.text, told.text)}
    for name in _SIZES:
        part, field = name.split(".")
        said, true = (getattr(side, field) for side in sides[part])
        if said != true:
            raise DamagedBundle(f"the manifest says {name} {said}, config.json says {true}", remedy=REBUILD)
    if model.geometry != geometry:
        why = f"the manifest cuts images by {model.geometry}, preprocessor_config.json by {geometry}"
        raise DamagedBundle(why, remedy=REBUILD)
