"""The decoder's input embeddings, memory-mapped: a prompt reads only the rows that it uses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vlm_edge.errors import DamagedBundle

_TYPES = {"F16": np.float16, "F32": np.float32}
_MAX_HEADER_BYTES = 1 << 20


class EmbeddingTable:
    """One matrix [V, D] in a safetensors file.

    The header is read here rather than with the safetensors library because only a map of the file can leave the rest of the
    table on disk; the format is eight bytes of header length, a JSON header, then raw rows.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                if not 2 <= length <= _MAX_HEADER_BYTES:
                    raise ValueError(f"header of {length} bytes")
                header = json.loads(stream.read(length))
            (entry,) = (value for name, value in header.items() if name != "__metadata__")
            rows, width = entry["shape"]
            first, last = entry["data_offsets"]
            kind = np.dtype(_TYPES[entry["dtype"]])
            if last - first != rows * width * kind.itemsize or path.stat().st_size != 8 + length + last:
                raise ValueError("sizes do not agree")
            self._rows: NDArray[np.floating] = np.memmap(path, kind, "r", 8 + length + first, (rows, width))
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as cause:
            raise DamagedBundle(f"{path.name} is no embedding table: {cause}", remedy="build the bundle again") from cause

    @property
    def shape(self) -> tuple[int, int]:
        """Vocabulary and width."""
        return self._rows.shape[0], self._rows.shape[1]

    def rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Embeddings float32 [len(tokens), D]."""
        return np.asarray(self._rows[list(tokens)], np.float32)
