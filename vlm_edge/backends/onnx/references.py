"""A few rows of a reference, small enough to travel with a bundle, against which a graph is checked without torch."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.parity import Parity, measure
from vlm_edge.core.bundle import atomic_write
from vlm_edge.errors import BadInput, DamagedBundle

ROWS = 4
Arrays = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class StoredReferences:
    """For each input: its fingerprint, which rows of the output [rows, D] were kept, and their values, fp32 [ROWS, D]."""

    fingerprints: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    values: tuple[Floats, ...]


def keep_rows(inputs: Sequence[Arrays], outputs: Sequence[Floats]) -> StoredReferences:
    """ROWS rows of each output at equal distances, the first and the last among them."""
    tables = [output.reshape(-1, output.shape[-1]) for output in outputs]
    rows = tuple(np.unique(np.linspace(0, len(table) - 1, ROWS).round().astype(np.int64)) for table in tables)
    values = tuple(table[index].astype(np.float32) for table, index in zip(tables, rows, strict=True))
    return StoredReferences(tuple(fingerprint(arrays) for arrays in inputs), rows, values)


def fingerprint(arrays: Arrays) -> str:
    """SHA-256 over names, types, shapes and bytes of an input's arrays."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)
    return digest.hexdigest()


def save(references: StoredReferences, path: Path) -> None:
    """Write an .npz, atomically."""
    arrays: dict[str, NDArray[Any]] = {"fingerprints": np.array(references.fingerprints)}
    for number, (rows, values) in enumerate(zip(references.rows, references.values, strict=True)):
        arrays |= {f"rows_{number}": rows, f"values_{number}": values}
    with atomic_write(path) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]  # the stub takes the names for its own options


def load(path: Path) -> StoredReferences:
    """Read what `save` wrote; raises DamagedBundle."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            names = tuple(str(name) for name in stored["fingerprints"])
            rows = tuple(stored[f"rows_{number}"] for number in range(len(names)))
            values = tuple(stored[f"values_{number}"] for number in range(len(names)))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as cause:
        raise DamagedBundle(f"{path} holds no references: {cause}", remedy="export the model again") from cause
    return StoredReferences(names, rows, values)


def check(
    references: StoredReferences, component: str, dtype: str, inputs: Sequence[Arrays], outputs: Sequence[Floats]
) -> Parity:
    """A graph's outputs on the stored inputs against the stored rows; the caller judges by `.ok` or parity.require.

    Raises BadInput when the inputs are not those that the references were made from.
    """
    given = tuple(fingerprint(arrays) for arrays in inputs)
    if given != references.fingerprints:
        raise BadInput(
            f"the inputs are not those that the references of {component} were made from",
            remedy="use the calibration images and the preprocessing of the version that exported the bundle",
        )
    measured = [
        table.reshape(-1, table.shape[-1])[rows] if table.size // table.shape[-1] > rows.max() else table
        for table, rows in zip(outputs, references.rows, strict=True)
    ]
    return measure(component, dtype, measured, references.values)
