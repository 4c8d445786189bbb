"""Is a bundle still what was written, and does it compute what its model computes? Without torch, unless MODEL is given."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from vlm_edge.core import host
from vlm_edge.core.bundle import (
    ArtifactRef,
    Bundle,
    Manifest,
    check_file,
    check_seal,
    hash_file,
    read_manifest,
)
from vlm_edge.core.checkpoint import SINGLE
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.pipeline.answering.encoders import SALIENCY_ROLE, open_saliency
from vlm_edge.pipeline.checking import awq, decoder, vision
from vlm_edge.pipeline.checking.checks import Check, Part, Verification, not_checked
from vlm_edge.pipeline.embedded import bundle_folder
from vlm_edge.pipeline.exporting.llm import TEXT_SOURCE
from vlm_edge.pipeline.exporting.source import Source, describe
from vlm_edge.pipeline.exporting.tools import require_build_tools
from vlm_edge.pipeline.written import written

REPORT = "reports/verify.json"
GRAPHS = ("vision.graph", "llm.graph")
Step = Callable[[str], None]


def verify_bundle(
    root: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str = "",
    offline: bool = False,
    bars: bool = True,
    threads: int | None = None,
    on_step: Step | None = None,
) -> Verification:
    """Check manifest, files, graphs, finite values and parity; writes nothing.

    root: a bundle's folder, or `nano`.  model: the checkpoint to compare with (needs the `build` extra); revision, offline and
    bars as hub.fetch has them, the revision by default the one that the bundle was made from.  threads: of ONNX Runtime.
    on_step: called with what is being done.
    Raises DamagedBundle where there is no manifest to check, BadInput for a MODEL that cannot be read, MissingDependency.
    """
    step = on_step or (lambda _: None)
    threads = host.session_threads(threads)
    folder = bundle_folder(root)
    manifest = read_manifest(folder)
    if model is not None:
        require_build_tools("comparing with MODEL")
        pinned = manifest.source.get("revision", "") if os.fspath(model) == manifest.source.get("model") else ""
        source = describe(model, revision=revision or pinned, offline=offline, on_step=step, bars=bars)
    else:
        source = None
    checks = tuple(_checks(Bundle(folder, manifest), source, threads, step))
    return Verification(folder, manifest.name, checks)


def write_report(found: Verification) -> Path:
    """Put the report into the bundle, as design has it beside the others; the manifest, which it speaks of, does not list it."""
    path = found.root / REPORT
    with written(path, remedy="leave out --report; --json prints the same") as stream:
        stream.write(json.dumps(found.to_json(), indent=1).encode() + b"\n")
    return path


def _checks(bundle: Bundle, source: Source | None, threads: int, step: Step) -> Iterator[Check]:
    manifest = bundle.manifest
    step("hash the files")
    files = list(_files(bundle.root, manifest))
    yield from files
    graphs = [artifact for role in GRAPHS for artifact in manifest.artifacts if artifact.role == role]
    parts = [Part(bundle, graph, threads) for graph in graphs]
    if any(check.ok is False for check in files):
        # What was changed is not run either.
        names = [part.name for part in parts] + [awq.NAME] * (bundle.find(awq.ROLE) is not None)
        yield from (not_checked(name, "files of the bundle are not what was written") for name in names)
        return
    torch_says = None
    if source is not None:
        same = list(_same_model(manifest, source))
        if all(check.ok for check in same) and TEXT_SOURCE in manifest.source:
            step("hash the decoder's weights of MODEL")
            same.append(_same_text(manifest, source))
        if all(check.ok for check in same) and any(graph.role == "vision.graph" for graph in graphs):
            step("run MODEL with torch")
            torch_says = vision.torch_reference(source, bundle)
            if "vision" in manifest.source:
                same.append(_compared("source vision", torch_says.weights, manifest.source["vision"]))
        yield from same
        if any(check.ok is False for check in same):
            torch_says = None
            yield not_checked("torch", "MODEL is not the model that the bundle was made from")
    for part in parts:
        step(f"check {part.name}")
        if part.graph.role == "vision.graph":
            yield from vision.vision_checks(part, torch_says)
        else:
            yield from decoder.decoder_checks(part)
    if bundle.find(awq.ROLE):
        step(f"check {awq.NAME}")
        yield from awq.awq_checks(bundle)
    if bundle.find(SALIENCY_ROLE):
        step("check saliency")
        yield _saliency(bundle, threads)


def _saliency(bundle: Bundle, threads: int) -> Check:
    """That the network loads and has the signature; how good its choices are no file says."""
    try:
        open_saliency(bundle, None, threads)
    except BadInput as cause:
        return Check("load saliency", False, note=cause.message)
    return Check("load saliency", True)


def _files(root: Path, manifest: Manifest) -> Iterator[Check]:
    """The manifest's own hash; then, if it can be trusted, every file's size and hash."""
    try:
        check_seal(root, manifest)
    except DamagedBundle as cause:
        yield Check("manifest", False, manifest.digest(), manifest.self_sha256, cause.message)
        yield not_checked("files", "the manifest, which says what they should be, is not right")
        return
    yield Check("manifest", True, manifest.digest(), manifest.self_sha256)
    yield from (_file(root, artifact) for artifact in manifest.artifacts)


def _file(root: Path, artifact: ArtifactRef) -> Check:
    name = f"file {artifact.path}"
    try:
        check_file(root, artifact)
        return _compared(name, hash_file(root / artifact.path), artifact.sha256)
    except DamagedBundle as cause:
        return Check(name, False, None, artifact.sha256, cause.message)
    except OSError as cause:
        return Check(name, False, None, artifact.sha256, f"it cannot be read: {cause}")


def _same_model(manifest: Manifest, source: Source) -> Iterator[Check]:
    """Each hash of the source that the manifest has; at least one has to be there."""
    hashes = dict(source.hashes)
    single = source.checkpoint.root / SINGLE
    if "checkpoint" in manifest.source and single.is_file():
        hashes["checkpoint"] = hash_file(single)
    shared = [key for key in hashes if key in manifest.source]
    if not shared:
        yield Check("source", False, note="the bundle does not say which model it was made from")
    yield from (_compared(f"source {key}", hashes[key], manifest.source[key]) for key in shared)


def _same_text(manifest: Manifest, source: Source) -> Check:
    """The decoder's weights, which are all that tells a fine-tune; a quantized decoder holds nothing to compare them with."""
    from vlm_edge.models.text_weights import text_digest

    return _compared(f"source {TEXT_SOURCE}", text_digest(source.checkpoint), manifest.source[TEXT_SOURCE])


def _compared(name: str, found: str, expected: str) -> Check:
    return Check(name, found == expected, found, expected, "" if found == expected else "it is another one")
