"""Adding to a bundle so that whatever interrupts it leaves a bundle that is right: the old one, or the new one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vlm_edge.core.bundle import (
    MANIFEST,
    ArtifactRef,
    Bundle,
    Manifest,
    hash_file,
    open_bundle,
    reference,
    unfinished,
    write_manifest,
)
from vlm_edge.core.file_lock import lock_exclusively
from vlm_edge.core.manifest_checks import check_manifest
from vlm_edge.errors import BadInput, DamagedBundle

LOCK = ".lock"
CONFIGURATION = {
    "config": "config.json",
    "generation_config": "generation_config.json",
    "tokenizer": "tokenizer.json",
    "tokenizer_config": "tokenizer_config.json",
    "chat_template": "chat_template.jinja",
    "preprocessor_config": "preprocessor_config.json",
}
"""Files that a bundle takes over from a checkpoint, by their role."""
_STAGE = ".export-"
_FOLDERS = frozenset({"vision", "llm", "saliency", "reports"})
_ANOTHER = "name another folder, or an empty one"


@dataclass(frozen=True)
class Staged:
    """A finished file in the stage folder, at the path that it is to have in the bundle, and what it is."""

    path: str
    role: str
    target: str = "any"
    dtype: str = ""


@contextmanager
def locked(out: Path) -> Iterator[Path]:
    """A stage folder inside `out` that is gone afterwards; meanwhile no other writer gets in.

    An `out` that did not exist is removed again when nothing was put into it. What a killed writer left is cleared away.
    Raises BadInput when somebody else writes there, or when nothing can be written; also for a file elsewhere that the block
    could not read or write.
    """
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / LOCK).open("ab") as lock:
            _lock(lock.fileno(), out)
            for left in out.glob(f"{_STAGE}*"):
                shutil.rmtree(left)
            for half in unfinished(out / MANIFEST):
                half.unlink()
            with tempfile.TemporaryDirectory(dir=out, prefix=_STAGE) as stage:
                yield Path(stage)
    except OSError as cause:
        if cause.filename is not None and not Path(os.fsdecode(cause.filename)).absolute().is_relative_to(
            out.absolute()
        ):
            raise BadInput(str(cause), remedy="check the path, its permissions and the disk") from cause
        raise BadInput(
            f"{out} cannot be written: {cause}", remedy="free space there, or name another folder"
        ) from cause
    finally:
        if created and out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK}:
            shutil.rmtree(out)


def _lock(handle: int, out: Path) -> None:
    if not lock_exclusively(handle):
        raise BadInput(f"another command is writing into {out}", remedy="wait until it has ended")


def present(out: Path, source: Mapping[str, str], name: str) -> Manifest | None:
    """The manifest of the bundle in `out`, or None where there is none yet.

    source: hashes that say which model is to be added; those that both sides have must agree, and one at least must be there.
    Raises BadInput when the folder holds another model or files of somebody else's, DamagedBundle for a damaged bundle.
    """
    if out.exists() and not out.is_dir():
        raise BadInput(f"{out} is a file", remedy="name a folder for the bundle")
    if not (out / MANIFEST).exists():
        _refuse_strangers(out)
        return None
    manifest = open_bundle(out).manifest
    shared = source.keys() & manifest.source.keys()
    if not shared or any(source[key] != manifest.source[key] for key in shared):
        raise BadInput(f"{out} holds another model, {manifest.name}; {name} cannot be added to it", remedy=_ANOTHER)
    return manifest


def _refuse_strangers(out: Path) -> None:
    """A folder without a manifest may hold what an interrupted writer left, and nothing else."""
    known = {LOCK, *_FOLDERS, *CONFIGURATION.values()}
    try:
        known |= {path.name for path in unfinished(out / MANIFEST)}
        found = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    except OSError as cause:
        raise BadInput(f"{out} cannot be read: {cause}", remedy="check its permissions") from cause
    strange = [name for name in found if name not in known and not name.startswith(_STAGE)]
    if strange:
        raise BadInput(f"{out} holds files that are no bundle's, such as {strange[0]}", remedy=_ANOTHER)


def checked(manifest: Manifest) -> Manifest:
    """The manifest itself; raises BadInput when its numbers, which come from a checkpoint, are out of range."""
    try:
        check_manifest(manifest)
    except DamagedBundle as cause:
        raise BadInput(
            f"no bundle can be made of this model: {cause.message}", remedy="correct its config.json"
        ) from cause
    return manifest


def publish(out: Path, stage: Path, files: Sequence[Staged], manifest: Manifest, *, old: Manifest | None) -> Bundle:
    """Move finished files from the stage into the bundle and write the manifest that lists them, last.

    manifest: without the new files.  old: the manifest that is in `out` now.  Files that `old` has and the new one has not, and
    files that change, are struck from the manifest before they are touched: a bundle never lists a file that it does not hold.
    """
    new = [reference(stage, file.path, role=file.role, target=file.target, dtype=file.dtype) for file in files]
    paths = {artifact.path for artifact in new}
    final = replace(
        manifest, artifacts=_by_path([*(kept for kept in manifest.artifacts if kept.path not in paths), *new])
    )
    checked(final)
    before = {artifact.path: artifact for artifact in old.artifacts} if old else {}
    moved = [artifact for artifact in new if before.get(artifact.path) != artifact or not _is_whole(out, artifact)]
    listed = {artifact.path for artifact in final.artifacts}
    dropped = [path for path in before if path not in listed]
    touched = {artifact.path for artifact in moved}.intersection(before).union(dropped)
    if old and touched:
        write_manifest(out, replace(old, artifacts=_by_path([before[path] for path in before if path not in touched])))
    for path in dropped:
        (out / path).unlink(missing_ok=True)
    for artifact in moved:
        (out / artifact.path).parent.mkdir(parents=True, exist_ok=True)
        (stage / artifact.path).replace(out / artifact.path)
    return write_manifest(out, final)


def _is_whole(out: Path, artifact: ArtifactRef) -> bool:
    """Whether a file is still what it was: whoever exports again because a file was damaged gets it mended."""
    return hash_file(out / artifact.path) == artifact.sha256


def _by_path(artifacts: Sequence[ArtifactRef]) -> tuple[ArtifactRef, ...]:
    return tuple(sorted(artifacts, key=lambda artifact: artifact.path))
