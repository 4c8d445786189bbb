"""The bundle: a folder with a manifest that names every file, its size and its hash."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, ClassVar

from vlm_edge.core.load import OMIT_DEFAULT, load_file, read_text, to_plain
from vlm_edge.core.manifest_checks import check_manifest
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import DamagedBundle

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
_STRICT = {"extra": "forbid"}
_REBUILD = "build the bundle again, or copy it again from its source"
_MAX_SHOWN_CHARS = 200
_SUFFIX_BYTES = 4
_DISTRUST = "do not use this bundle"
_READABLE = "check the permissions of the folder and its files, and the disk"


@dataclass(frozen=True)
class ArtifactRef:
    """One file of a bundle: a relative path with forward slashes; `role` is what it is, `target` for which device."""

    path: str
    sha256: str
    bytes: int
    role: str = "file"
    target: str = "any"
    dtype: str = ""
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Limits:
    """What the bundle was planned for; the runtime refuses more."""

    max_tiles: int
    max_model_len: int
    max_pixels: int = 400_000_000
    max_images: int = 1
    batch_size: int = 1
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class RunDefaults:
    """How `run` behaves without options."""

    tiling: str = "auto"
    reduce: str = "none"
    threshold: float = 0.95
    keep: float = 0.5
    max_new_tokens: int = 64
    saliency: str = field(default="detail", metadata=OMIT_DEFAULT)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class ParityResult:
    """A component's exported graph against its reference: the measured value and the limit that it kept."""

    component: str
    metric: str
    value: float
    limit: float
    ok: bool
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Manifest:
    """manifest.json. `self_sha256` is the hash of this record with that field empty."""

    schema_version: int
    name: str
    source: dict[str, str]
    tools: dict[str, str]
    model: ModelSpec
    limits: Limits
    defaults: RunDefaults
    artifacts: tuple[ArtifactRef, ...]
    parity: tuple[ParityResult, ...] = ()
    recipe: dict[str, Any] = field(default_factory=dict)
    self_sha256: str = ""
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT

    def kv_cache(self, target: str) -> str:
        """`int8` or `int4` where a target's decoder keeps its KV cache so; empty where it has the graph's float type."""
        return next((a.dtype for a in self.artifacts if a.role == "llm.kv_scales" and a.target == target), "")

    def sealed(self) -> Manifest:
        """The same record with its own hash filled in."""
        return replace(self, self_sha256=self.digest())

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of everything but `self_sha256`."""
        plain = to_plain(replace(self, self_sha256=""))
        return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Bundle:
    """A folder whose manifest has been read and whose files all exist with the right size."""

    root: Path
    manifest: Manifest

    def find(self, role: str, *, target: str = "any") -> Path | None:
        """The file with a role for a target (or for any), or None."""
        fitting = (a for a in self.manifest.artifacts if a.role == role and a.target in (target, "any"))
        return next((self.root / artifact.path for artifact in fitting), None)

    def path(self, role: str, *, target: str = "any") -> Path:
        """The same; raises DamagedBundle when the bundle has none."""
        found = self.find(role, target=target)
        if found is not None:
            return found
        wanted, options = "", " --component llm" if role.startswith("llm.") else ""
        if target != "any":
            wanted, options = f" for {target}", f"{options} --target {target}"
        raise DamagedBundle(
            f"bundle {self.manifest.name} has no {role}{wanted}",
            remedy=f"vlm-edge export MODEL {self.root}{options}",
        )

    def bytes_by_role(self, target: str, *, decoder: str | None = None) -> dict[str, int]:
        """What a run on one target loads: sizes of the files for it or for any.

        decoder: target of the decoder's files, where it is another one than that of the rest.
        """
        sizes: dict[str, int] = {}
        for artifact in self.manifest.artifacts:
            wanted = decoder if decoder is not None and artifact.role.startswith("llm.") else target
            if artifact.target in (wanted, "any"):
                sizes[artifact.role] = sizes.get(artifact.role, 0) + artifact.bytes
        return sizes

    def targets(self) -> tuple[str, ...]:
        """Devices that the bundle has a decoder for."""
        return tuple(sorted({a.target for a in self.manifest.artifacts if a.role == "llm.graph"}))


def open_bundle(root: Path) -> Bundle:
    """Read a bundle's manifest and check schema, self-hash, ranges, paths and sizes; hashing files is `verify_hashes`' work.

    Raises DamagedBundle.
    """
    manifest = read_manifest(root)
    try:
        check_seal(root, manifest)
        for artifact in manifest.artifacts:
            check_file(root, artifact)
    except OSError as cause:
        raise DamagedBundle(f"bundle {root} cannot be read: {cause}", remedy=_READABLE) from cause
    return Bundle(root, manifest)


def read_manifest(root: Path) -> Manifest:
    """What manifest.json says, its schema and fields checked and nothing else: `check_seal` and `check_file` do the rest.

    Raises DamagedBundle.
    """
    try:
        _check_folder(root)
        path = root / MANIFEST
        _check_schema(path)
        return load_file(path, Manifest, error=DamagedBundle)
    except OSError as cause:
        raise DamagedBundle(f"bundle {root} cannot be read: {cause}", remedy=_READABLE) from cause


def check_seal(root: Path, manifest: Manifest) -> None:
    """Raise DamagedBundle unless a manifest has the hash that it carries, and numbers that can be."""
    if manifest.self_sha256 != manifest.digest():
        raise DamagedBundle(f"{root / MANIFEST} was changed after it was written", remedy=_REBUILD)
    check_manifest(manifest)


def _check_folder(root: Path) -> None:
    if not root.is_dir():
        raise DamagedBundle(f"bundle {root} is not a folder", remedy="name the folder that holds manifest.json")
    if not (root / MANIFEST).is_file():
        partial = any(root.iterdir())
        why = "was not finished: it has files but no manifest.json" if partial else "is empty"
        raise DamagedBundle(f"bundle {root} {why}", remedy=_REBUILD)


def _check_schema(path: Path) -> None:
    """Name a newer schema as such before strict parsing trips over its new fields."""
    try:
        version = json.loads(read_text(path, error=DamagedBundle))["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise DamagedBundle(f"{path} is not a manifest: {cause}", remedy=_REBUILD) from cause
    if version != SCHEMA_VERSION:
        remedy = "install a newer vlm-edge" if isinstance(version, int) and version > SCHEMA_VERSION else _REBUILD
        raise DamagedBundle(
            f"{path} has schema {_shown(repr(version))}; this vlm-edge reads {SCHEMA_VERSION}", remedy=remedy
        )


def check_file(root: Path, artifact: ArtifactRef) -> None:
    """Raise DamagedBundle unless a file is there, inside the bundle, with its size; its hash is not looked at."""
    relative, name = PurePosixPath(artifact.path), _shown(artifact.path)
    if relative.is_absolute() or ".." in relative.parts or not relative.parts or {"\\", "\0"} & {*artifact.path}:
        raise DamagedBundle(f"manifest names a path outside the bundle: {name!r}", remedy=_DISTRUST)
    path = root / relative
    try:
        inside = path.resolve().is_relative_to(root.resolve())
        size = path.stat().st_size if path.is_file() else None
    except (OSError, ValueError, RuntimeError) as cause:
        raise DamagedBundle(f"{name!r} cannot be read: {_shown(str(cause))}", remedy=_REBUILD) from cause
    if not inside:
        raise DamagedBundle(f"{name} links to a file outside the bundle", remedy=_DISTRUST)
    if size is None:
        raise DamagedBundle(f"{name} is missing from bundle {root}", remedy=_REBUILD)
    if size != artifact.bytes:
        raise DamagedBundle(f"{name} has {size} bytes, the manifest says {artifact.bytes}", remedy=_REBUILD)


def _shown(text: str) -> str:
    """What an unchecked manifest says, short enough for a message."""
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "..."


def hash_file(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify_hashes(bundle: Bundle, *, force: bool = False) -> None:
    """Check every file's SHA-256, once per machine: results are remembered by path, size, mtime and manifest hash.

    force: hash again whatever is remembered.  Raises DamagedBundle for the first file that differs.
    """
    try:
        stamp = _stamp(bundle)
        if not force and stamp in _remembered():
            return
        wrong = [a.path for a in bundle.manifest.artifacts if hash_file(bundle.root / a.path) != a.sha256]
    except OSError as cause:
        raise DamagedBundle(f"bundle {bundle.root} cannot be read: {cause}", remedy=_READABLE) from cause
    if wrong:
        raise DamagedBundle(f"{wrong[0]} differs from what was written: its SHA-256 is wrong", remedy=_REBUILD)
    _remember(stamp)


def _stamp(bundle: Bundle) -> str:
    parts = [str(bundle.root.resolve()), bundle.manifest.self_sha256]
    for artifact in bundle.manifest.artifacts:
        status = (bundle.root / artifact.path).stat()
        parts += [artifact.path, str(status.st_size), str(status.st_mtime_ns)]
    return hashlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest()


def cache_folder() -> Path:
    """Where this user's machine remembers what can be found out again; RuntimeError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "vlm-edge"


def _cache_file() -> Path:
    return cache_folder() / "verified"


def _remembered() -> set[str]:
    try:
        return set(_cache_file().read_text("ascii").split())
    except (OSError, UnicodeDecodeError, RuntimeError):
        return set()


def _remember(stamp: str) -> None:
    """Append a stamp that is not there yet; a machine whose cache folder cannot be written hashes every time."""
    if stamp in _remembered():
        return
    try:
        path = _cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="ascii") as stream:
            stream.write(stamp + "\n")
    except (OSError, RuntimeError):
        return


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary stream that becomes `path` only when the block ends without an error; the umask says who may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile: it makes files for their owner alone, and what the umask would allow is known only to open().
    temporary = path.parent / f".{path.name}.{secrets.token_hex(_SUFFIX_BYTES)}"
    handle = temporary.open("xb")
    try:
        with handle as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def unfinished(path: Path) -> list[Path]:
    """What `atomic_write` left beside `path` in processes that were killed before they could rename or remove it."""
    return sorted(path.parent.glob(f".{path.name}.{'[0-9a-f]' * (2 * _SUFFIX_BYTES)}"))


def reference(root: Path, path: str, *, role: str = "file", target: str = "any", dtype: str = "") -> ArtifactRef:
    """Size and hash of a finished file, for the manifest."""
    full = root / path
    return ArtifactRef(path, hash_file(full), full.stat().st_size, role, target, dtype)


def write_manifest(root: Path, manifest: Manifest) -> Bundle:
    """Seal the manifest and write it, last of all files."""
    sealed = manifest.sealed()
    with atomic_write(root / MANIFEST) as stream:
        stream.write(json.dumps(to_plain(sealed), indent=1).encode() + b"\n")
    return Bundle(root, sealed)


def merge_artifacts(old: Sequence[ArtifactRef], new: Sequence[ArtifactRef]) -> tuple[ArtifactRef, ...]:
    """`old` with every path that `new` names replaced, ordered by path."""
    merged = {artifact.path: artifact for artifact in (*old, *new)}
    return tuple(merged[path] for path in sorted(merged))
