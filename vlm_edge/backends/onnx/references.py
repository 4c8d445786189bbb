"""A few rows of a reference, small enough to travel with a bundle, against which a graph is checked without torch."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.parity import Limit, Parity, measure
from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import BadInput, DamagedBundle

ROWS = 4
_AGAIN = "export the model again"
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class StoredReferences:
    """For each input: its fingerprint, which rows of the output [rows, D] were kept, and their values, fp32 [ROWS, D].

    layer_values: module path -> name of its output in the graph, as far as the graph still has it: what the layers of a graph
    are cannot be read off it any more once operators are fused.
    """

    fingerprints: tuple[str, ...]
    rows: tuple[NDArray[np.int64], ...]
    values: tuple[Floats, ...]
    layer_values: Mapping[str, str] = field(default_factory=dict)


def keep_rows(
    inputs: Sequence[Arrays], outputs: Sequence[Floats], layer_values: Mapping[str, str] | None = None
) -> StoredReferences:
    """ROWS rows of each output at equal distances, the first and the last among them."""
    tables = [output.reshape(-1, output.shape[-1]) for output in outputs]
    rows = tuple(np.unique(np.linspace(0, len(table) - 1, ROWS).round().astype(np.int64)) for table in tables)
    values = tuple(table[index].astype(np.float32) for table, index in zip(tables, rows, strict=True))
    return StoredReferences(tuple(fingerprint(arrays) for arrays in inputs), rows, values, layer_values or {})


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
    if references.layer_values:
        arrays["layers"] = np.array([*references.layer_values.items()])
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
            layers = {str(path): str(value) for path, value in stored["layers"]} if "layers" in stored else {}
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as cause:
        raise DamagedBundle(f"{path} holds no references: {cause}", remedy=_AGAIN) from cause
    if not names or not all(_are_rows(index, kept) for index, kept in zip(rows, values, strict=True)):
        raise DamagedBundle(f"{path} holds no references: its rows are none", remedy=_AGAIN)
    return StoredReferences(names, rows, values, layers)


def _are_rows(index: NDArray[Any], values: NDArray[Any]) -> bool:
    """Whether these are numbers of rows, none negative, and as many rows of fp32."""
    numbers = index.dtype == np.int64 and index.ndim == 1 and index.size > 0 and bool((index >= 0).all())
    return numbers and values.dtype == np.float32 and values.ndim == 2 and len(values) == len(index)


def check(
    references: StoredReferences, component: str, dtype: str, inputs: Sequence[Arrays], outputs: Sequence[Floats], *,
    limit: Limit | None = None,
) -> Parity:  # fmt: skip
    """A graph's outputs on the stored inputs against the stored rows; the caller judges by `.ok` or parity.require.

    limit: instead of the table's for this dtype.  Raises BadInput when the inputs are not those that the references were made from.
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
    return measure(component, dtype, measured, references.values, limit=limit)
