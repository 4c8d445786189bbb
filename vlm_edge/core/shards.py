"""safetensors files: the header validated without reading data, one tensor's bytes at a time, and copies written out.

A file is a little-endian u64 N, N bytes of JSON {name: {dtype, shape, data_offsets}}, and the data, which the offsets
cover from its first byte to its last without holes or overlaps.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, TypeGuard

from vlm_edge.errors import BadInput

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "I64": 64, "U64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
MAX_HEADER_BYTES = 16 << 20
"""About 100,000 tensors in one file. The format allows 100 MB, which as Python objects would take gigabytes."""
MAX_RANK = 16
COPY_BYTES = 4 << 20
AGAIN = "download or copy the checkpoint again"
_MAX_SHOWN_CHARS = 120
_FIELDS = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class TensorRef:
    """One tensor of a safetensors file: `start` is its first byte in the file, `bytes` its length there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    bytes: int


def shown(text: str) -> str:
    """What an unchecked file says, quoted, printable, and short enough for a message."""
    return repr(text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "...")


def strict_json(text: str, name: str) -> Any:
    """JSON in which no object has a key twice (two readers would take different ones); raises BadInput."""
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as cause:
        raise BadInput(f"{name} is not valid JSON: {_reason(cause)}", remedy=AGAIN) from cause


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {shown(twice)} stands there twice")
    return found


def _reason(cause: Exception) -> str:
    return "nested too deeply" if isinstance(cause, RecursionError) else str(cause)


def read_header(path: Path) -> dict[str, TensorRef]:
    """The tensors of one file by name; no data is read.

    Raises BadInput for a file that is missing, truncated, or whose header lies about itself, the tensors or the file.
    """
    try:
        with path.open("rb", buffering=0) as stream:
            file_bytes = os.fstat(stream.fileno()).st_size
            length = _header_bytes(path, stream.read(8), file_bytes)
            text = stream.read(length)
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    if len(text) != length or not text.startswith(b"{"):
        _refuse(path, "its header is no JSON object")
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise BadInput(f"{path}: its header is not UTF-8", remedy=AGAIN) from cause
    header = strict_json(decoded, f"the header of {path}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "its header's __metadata__ is no map of texts")
    _check_texts(path, (*header, *metadata, *metadata.values()))
    data_start = 8 + length
    tensors = {name: _tensor(path, name, entry, data_start, file_bytes) for name, entry in header.items()}
    _check_cover(path, tensors, data_start, file_bytes)
    return tensors


def _check_texts(path: Path, texts: Iterable[str]) -> None:
    """JSON can spell half a character; no other reader takes that, and it could not be written out again."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as cause:
            raise BadInput(f"{path}: its header holds {shown(text)}, which is no text", remedy=AGAIN) from cause


def _header_bytes(path: Path, prefix: bytes, file_bytes: int) -> int:
    if len(prefix) < 8:
        _refuse(path, f"it has {file_bytes} bytes, too few for a safetensors file")
    length = int.from_bytes(prefix, "little")
    if length > file_bytes - 8:
        _refuse(path, f"its header claims {length} bytes, the file has {file_bytes}: truncated, or no safetensors file")
    if length > MAX_HEADER_BYTES:
        _refuse(path, f"its header claims {length} bytes, more than any real checkpoint has ({MAX_HEADER_BYTES})")
    return length


def _tensor(path: Path, name: str, entry: Any, data_start: int, file_bytes: int) -> TensorRef:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        _refuse(path, f"tensor {shown(name)} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        _refuse(path, f"tensor {shown(name)} has the unknown dtype {reprlib.repr(dtype)}")
    if not _are_sizes(shape) or len(shape) > MAX_RANK:
        _refuse(path, f"tensor {shown(name)} has the impossible shape {reprlib.repr(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _refuse(path, f"tensor {shown(name)} has the impossible data_offsets {reprlib.repr(offsets)}")
    begin, end = offsets
    if data_start + end > file_bytes:
        _refuse(path, f"tensor {shown(name)} ends at byte {data_start + end}, the file at {file_bytes}: truncated")
    if math.prod(shape) * DTYPE_BITS[dtype] != 8 * (end - begin):
        _refuse(
            path,
            f"tensor {shown(name)} of shape {reprlib.repr(shape)} and dtype {dtype} cannot have {end - begin} bytes",
        )
    return TensorRef(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _are_sizes(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_cover(path: Path, tensors: Mapping[str, TensorRef], data_start: int, file_bytes: int) -> None:
    position = data_start
    for tensor in sorted(tensors.values(), key=lambda ref: (ref.start, ref.bytes)):
        if tensor.start != position:
            how = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            _refuse(path, f"tensor {shown(tensor.name)} {how}")
        position += tensor.bytes
    if position != file_bytes:
        _refuse(path, f"{file_bytes - position} bytes at its end belong to no tensor")


def _refuse(path: Path, why: str) -> NoReturn:
    raise BadInput(f"{path}: {why}", remedy=AGAIN)


def _unreadable(path: Path, cause: OSError) -> BadInput:
    return BadInput(f"{path} cannot be read: {cause}", remedy="check that the file is there, its permissions, the disk")


def read_into(tensor: TensorRef, buffer: memoryview) -> None:
    """Fill `buffer`, writable and exactly `tensor.bytes` long, with the tensor's bytes and touch no other part of the file.

    Raises BadInput when the file has become unreadable or shorter.
    """
    try:
        with tensor.path.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            _fill(stream, tensor, buffer)
    except OSError as cause:
        raise _unreadable(tensor.path, cause) from cause


def read_tensor(tensor: TensorRef) -> bytearray:
    """The tensor's bytes, little-endian and row by row; raises BadInput as `read_into` does."""
    data = bytearray(tensor.bytes)
    read_into(tensor, memoryview(data))
    return data


def _fill(stream: FileIO, tensor: TensorRef, buffer: memoryview) -> None:
    view = buffer.cast("B")
    if len(view) > tensor.bytes:
        raise ValueError(f"a buffer of {len(view)} bytes for a tensor of {tensor.bytes}")
    done = 0
    while done < len(view):
        count = stream.readinto(view[done:])
        if not count:
            _refuse(tensor.path, f"it ended within tensor {shown(tensor.name)}: it became shorter while it was read")
        done += count


def same_bytes(a: TensorRef, b: TensorRef) -> bool:
    """Whether two tensors have one dtype, shape and content; holds at most 2 * COPY_BYTES of them."""
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return a == b or all(x == y for x, y in zip(_chunks(a), _chunks(b), strict=True))


def _chunks(tensor: TensorRef) -> Iterator[bytearray]:
    try:
        with tensor.path.open("rb", buffering=0) as stream:
            stream.seek(tensor.start)
            for done in range(0, tensor.bytes, COPY_BYTES):
                chunk = bytearray(min(COPY_BYTES, tensor.bytes - done))
                _fill(stream, tensor, memoryview(chunk))
                yield chunk
    except OSError as cause:
        raise _unreadable(tensor.path, cause) from cause


@dataclass(frozen=True)
class Piece:
    """A tensor to be written: its bytes, little-endian and row by row, come in chunks when their turn has come."""

    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes | bytearray | memoryview]]

    @property
    def bytes(self) -> int:
        """Length of all chunks together."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


def copy_of(tensor: TensorRef) -> Piece:
    """A stored tensor, copied byte for byte, COPY_BYTES at a time."""
    return Piece(tensor.dtype, tensor.shape, partial(_chunks, tensor))


def write_copies(stream: BinaryIO, tensors: Mapping[str, TensorRef]) -> None:
    """Write a safetensors file of `tensors`, each under its key as name, copied byte for byte, COPY_BYTES at a time.

    Raises BadInput when a source cannot be read, OSError when the target cannot be written.
    """
    write_pieces(stream, {name: copy_of(tensor) for name, tensor in tensors.items()})


def write_pieces(stream: BinaryIO, tensors: Mapping[str, Piece]) -> None:
    """Write a safetensors file; the order of its tensors follows from their types and names, never from the mapping's.

    Raises ValueError for a piece whose chunks are not as long as its shape says; else as `write_copies`.
    """
    order = sorted(tensors, key=lambda name: (-DTYPE_BITS[tensors[name].dtype], name))  # wide dtypes first: aligned
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        piece = tensors[name]
        offsets = [position, position + piece.bytes]
        header[name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": offsets}
        position += piece.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    stream.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        written = 0
        for chunk in tensors[name].chunks():
            stream.write(chunk)
            written += len(chunk)
        if written != tensors[name].bytes:
            raise ValueError(f"{written} bytes for {name}, which has {tensors[name].bytes}")
