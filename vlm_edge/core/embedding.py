"""The decoder's input embeddings, memory-mapped: a prompt reads only the rows that it uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import DamagedBundle

_TYPES = {"F16": np.float16, "F32": np.float32, "BF16": np.uint16}
"""How rows lie in the file. NumPy has no bf16: its bits are the upper half of a float32's."""
_MAX_HEADER_BYTES = 1 << 20


class EmbeddingTable:
    """One matrix [V, D] in a safetensors file; raises DamagedBundle for anything else.

    The header is read here rather than with the safetensors library because only a map of the file can leave the rest
    of the table on disk; the format is eight bytes of header length, a JSON header, then raw rows.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._rows, self._is_bf16 = _map(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as cause:
            remedy = "build the bundle again"
            raise DamagedBundle(f"{path.name} is no embedding table: {cause}", remedy=remedy) from cause

    @property
    def shape(self) -> tuple[int, int]:
        """Vocabulary and width."""
        return self._rows.shape[0], self._rows.shape[1]

    def rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings float32 [len(tokens), D]; raises DamagedBundle for a token that the table does not have."""
        wanted = np.asarray(tokens, np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self._rows):
            raise DamagedBundle(
                f"the tokenizer gives tokens up to {wanted.max()}, the embedding table has {len(self._rows)} rows",
                remedy="build the bundle again",
            )
        rows = self._rows[wanted]
        return (rows.astype(np.uint32) << 16).view(np.float32) if self._is_bf16 else np.asarray(rows, np.float32)


def _map(path: Path) -> tuple[NDArray[Any], bool]:
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= _MAX_HEADER_BYTES:
            raise ValueError(f"header of {length} bytes")
        header = json.loads(stream.read(length))
    (entry,) = (value for name, value in header.items() if name != "__metadata__")
    rows, width = entry["shape"]
    first, last = entry["data_offsets"]
    kind = np.dtype(_TYPES[entry["dtype"]])
    if min(rows, width) < 1 or first != 0 or last != rows * width * kind.itemsize:
        raise ValueError("sizes do not agree")
    if path.stat().st_size != 8 + length + last:
        raise ValueError("the file is cut short or too long")
    return np.memmap(path, kind, "r", 8 + length, (rows, width)), entry["dtype"] == "BF16"
