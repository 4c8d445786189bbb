"""Which machine, TensorRT, graph and settings an engine belongs to: in its file name and in a JSON file beside it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.core.bundle import atomic_write, hash_file
from vlm_edge.core.load import load_file, to_plain
from vlm_edge.errors import BadInput, DamagedBundle

SCHEMA_VERSION = 1
REBUILD = "build it again on this machine: vlm-edge export MODEL OUT --backend tensorrt"
_STRICT = {"extra": "forbid"}
_DIGEST_CHARS = 12
_MAX_NAME_CHARS = 48


@dataclass(frozen=True)
class Machine:
    """What TensorRT ties an engine to: the GPU's name, its compute capability (`8.7`) and TensorRT's full version."""

    gpu: str
    compute_capability: str
    tensorrt: str
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    @property
    def stem(self) -> str:
        """For file names: `nvidia-geforce-rtx-4090-sm89-trt10.15.1.29`."""
        gpu = _slug(self.gpu)[:_MAX_NAME_CHARS].strip("-") or "gpu"
        return f"{gpu}-sm{_slug(self.compute_capability).replace('.', '')}-trt{_slug(self.tensorrt)}"

    def __str__(self) -> str:
        return f"{self.gpu} (compute capability {self.compute_capability}) with TensorRT {self.tensorrt}"


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on; two keys that differ in any part name different files."""

    machine: Machine
    graph_sha256: str
    settings: BuildSettings
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    @property
    def file_name(self) -> str:
        """The machine, then the first 12 digits of a hash over the whole key: letters, digits, `.` and `-` only."""
        plain = json.dumps(to_plain(self), sort_keys=True, separators=(",", ":"))
        return f"{self.machine.stem}-{hashlib.sha256(plain.encode()).hexdigest()[:_DIGEST_CHARS]}.engine"


@dataclass(frozen=True)
class EngineRecord:
    """The JSON file beside an engine. It is written after the engine, so an unfinished engine has none that fits."""

    schema_version: int
    key: EngineKey
    engine_bytes: int
    engine_sha256: str
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


def graph_digest(graph: Path) -> str:
    """SHA-256 over an ONNX file and the external data that our exporter puts beside it (`model.onnx.data`).

    Raises BadInput when the graph is missing or cannot be read.
    """
    digest = hashlib.sha256()
    data = graph.with_name(f"{graph.name}.data")
    try:
        for path in (graph, data) if data.is_file() else (graph,):
            digest.update(hash_file(path).encode())
    except OSError as cause:
        raise BadInput(f"{graph} cannot be read: {cause}", remedy="name the model.onnx of an export") from cause
    return digest.hexdigest()


def record_path(engine: Path) -> Path:
    """`x.engine` -> `x.engine.json`."""
    return engine.with_name(f"{engine.name}.json")


def publish(out_dir: Path, key: EngineKey, data: bytes | memoryview) -> Path:
    """Write an engine under its key's name and then its record, each atomically; returns the engine's path.

    Whatever stops it in between leaves an engine without a record that fits, which nothing opens.  Raises BadInput for a
    folder that cannot be written or is full.
    """
    engine = out_dir / key.file_name
    record = EngineRecord(SCHEMA_VERSION, key, len(data), hashlib.sha256(data).hexdigest())
    with writing(out_dir):
        with atomic_write(engine) as stream:
            stream.write(data)
        with atomic_write(record_path(engine)) as stream:
            stream.write(json.dumps(to_plain(record), indent=1).encode() + b"\n")
    return engine


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns a failing write into BadInput with a remedy."""
    try:
        yield
    except OSError as cause:
        raise BadInput(
            f"TensorRT engine cannot be written to {folder}: {cause}",
            remedy="name a folder that can be written, with room for the engine",
        ) from cause


def read_record(engine: Path) -> EngineRecord:
    """An engine's record; raises DamagedBundle when it is missing, damaged, or belongs to a file of another name."""
    path = record_path(engine)
    if not engine.is_file() or not path.is_file():
        missing = path.name if engine.is_file() else engine.name
        raise DamagedBundle(f"TensorRT engine {engine} is not complete: {missing} is missing", remedy=REBUILD)
    try:
        record = load_file(path, EngineRecord, error=DamagedBundle)
    except BadInput as cause:  # settings that make no sense
        raise DamagedBundle(f"{path} is damaged: {cause}", remedy=REBUILD) from cause
    if record.schema_version != SCHEMA_VERSION or record.key.file_name != engine.name:
        raise DamagedBundle(f"{path} does not describe the engine beside it", remedy=REBUILD)
    return record


def read_engine(engine: Path, machine: Machine) -> bytes:
    """An engine's bytes, once its record says that it was built here and is whole.

    TensorRT runs what an engine holds, so nothing is handed to it before the hash fits. The hash stands beside the engine
    and guards against damage, not against somebody who can write both.  Raises BadInput for an engine of another GPU or
    TensorRT version, DamagedBundle for one that is incomplete or changed.
    """
    record = read_record(engine)
    if record.key.machine != machine:
        raise BadInput(
            f"TensorRT engine {engine.name} was built for {record.key.machine}; this machine has {machine}",
            remedy=REBUILD,
        )
    try:
        data = engine.read_bytes()
    except OSError as cause:
        raise DamagedBundle(f"TensorRT engine {engine} cannot be read: {cause}", remedy=REBUILD) from cause
    if len(data) != record.engine_bytes or hashlib.sha256(data).hexdigest() != record.engine_sha256:
        raise DamagedBundle(f"TensorRT engine {engine} was changed after it was built", remedy=REBUILD)
    return data


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")
