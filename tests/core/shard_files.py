"""Small checkpoint folders written by hand, so that a test can lie in any place of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CONFIG = {"model_type": "llava", "vision_config": {"hidden_size": 4}}
TENSORS = {
    "vision_tower.weight": ("F32", [2, 3]),
    "vision_tower.bias": ("BF16", [3]),
    "language_model.weight": ("F16", [5, 2]),
    "language_model.step": ("I64", []),
    "language_model.empty": ("F32", [0, 4]),
}
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8}


def header_of(names: list[str]) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        dtype, shape = TENSORS[name]
        count = 1
        for side in shape:
            count *= side
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + count * BYTES[dtype]]}
        position += count * BYTES[dtype]
    return header


def data_of(header: dict[str, Any]) -> bytes:
    """Every byte differs from its neighbours, so that a read at a wrong place shows."""
    end = max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    return bytes(7 * index % 251 for index in range(end))


def shard(header: Any, data: bytes, *, length: int | None = None) -> bytes:
    """header: a JSON value, or its bytes.  length: what the first eight bytes claim, the truth by default."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def valid_shard(names: list[str] | None = None) -> bytes:
    header = header_of(names or list(TENSORS))
    return shard(header, data_of(header))


def write_single(root: Path, content: bytes | None = None) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(CONFIG))
    (root / "model.safetensors").write_bytes(valid_shard() if content is None else content)
    return root


SHARDS = {
    "model-00001-of-00002.safetensors": ["vision_tower.weight", "vision_tower.bias"],
    "model-00002-of-00002.safetensors": ["language_model.weight", "language_model.step", "language_model.empty"],
}


def index_of() -> dict[str, Any]:
    weight_map = {name: file for file, names in SHARDS.items() for name in names}
    return {"metadata": {"total_size": 64}, "weight_map": weight_map}


def write_sharded(root: Path, index: Any = None) -> Path:
    """index: a JSON value, or its bytes; the true one by default."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(CONFIG))
    for file, names in SHARDS.items():
        (root / file).write_bytes(valid_shard(names))
    index = index_of() if index is None else index
    (root / "model.safetensors.index.json").write_bytes(
        index if isinstance(index, bytes) else json.dumps(index).encode()
    )
    return root
