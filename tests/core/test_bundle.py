"""The bundle on disk: what was written opens, and whatever has been changed, cut or smuggled in does not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core import bundle as bundles
from vlm_edge.core.bundle import (
    ArtifactRef,
    Bundle,
    atomic_write,
    hash_file,
    merge_artifacts,
    open_bundle,
    reference,
    verify_hashes,
    write_manifest,
)
from vlm_edge.errors import DamagedBundle

Edit = Callable[[dict[str, Any]], None]


def seal(plain: dict[str, Any]) -> None:
    """Give edited JSON a fitting hash of its own, computed here from the rule in the docstring of Manifest."""
    plain["self_sha256"] = ""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    plain["self_sha256"] = hashlib.sha256(text.encode()).hexdigest()


def edit(bundle: Bundle, change: Edit, *, sealed: bool = True) -> Path:
    path = bundle.root / "manifest.json"
    plain = json.loads(path.read_text())
    change(plain)
    if sealed:
        seal(plain)
    path.write_text(json.dumps(plain))
    return bundle.root


def refused(root: Path, why: str) -> DamagedBundle:
    with pytest.raises(DamagedBundle, match=why) as caught:
        open_bundle(root)
    assert caught.value.remedy
    return caught.value


def test_what_was_written_is_read_back(tiny_bundle: Bundle) -> None:
    opened = open_bundle(tiny_bundle.root)
    assert opened == tiny_bundle
    verify_hashes(opened)


def test_artifacts_are_found_by_role_and_target(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.path("llm.graph", target="cpu") == tiny_bundle.root / "llm/cpu/model.onnx"
    assert tiny_bundle.path("tokenizer", target="cuda").name == "tokenizer.json"
    assert tiny_bundle.targets() == ("cpu",)
    assert tiny_bundle.find("llm.graph", target="cuda") is None
    with pytest.raises(DamagedBundle, match=r"no llm\.graph for cuda"):
        tiny_bundle.path("llm.graph", target="cuda")


@pytest.mark.parametrize(
    ("role", "target", "options"),
    [
        ("vision.graph", "cuda", "--target cuda"),
        ("llm.graph", "cuda", "--component llm --target cuda"),  # without it, export adds the tower alone
        ("preprocessor_config", "any", ""),  # which is no target that export knows
    ],
)
def test_a_missing_file_is_remedied_by_a_command_that_brings_it(
    role: str, target: str, options: str, tiny_bundle: Bundle
) -> None:
    with pytest.raises(DamagedBundle) as caught:
        tiny_bundle.path(role, target=target)
    assert caught.value.remedy == f"vlm-edge export MODEL {tiny_bundle.root} {options}".rstrip()


def test_references_hold_size_and_hash(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180's example
    assert hash_file(tmp_path / "a") == known
    assert reference(tmp_path, "a", role="r", target="cpu", dtype="fp16") == ArtifactRef(
        "a", known, 3, "r", "cpu", "fp16"
    )


def test_the_manifests_own_hash_follows_its_documented_rule(tiny_bundle: Bundle) -> None:
    plain = json.loads((tiny_bundle.root / "manifest.json").read_text())
    written = plain["self_sha256"]
    seal(plain)
    assert written == plain["self_sha256"] == tiny_bundle.manifest.digest()


def test_a_changed_manifest_is_refused(tiny_bundle: Bundle) -> None:
    def more_tiles(plain: dict[str, Any]) -> None:
        plain["limits"]["max_tiles"] = 7

    refused(edit(tiny_bundle, more_tiles, sealed=False), "changed after it was written")


def test_the_same_manifest_in_another_layout_is_accepted(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.root / "manifest.json"
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(dict(reversed(plain.items())), indent=7))
    assert open_bundle(tiny_bundle.root).manifest == tiny_bundle.manifest


def test_a_flipped_byte_is_found_and_named(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.root / "llm/cpu/model.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    opened = open_bundle(tiny_bundle.root)
    with pytest.raises(DamagedBundle, match=r"llm/cpu/model\.onnx differs"):
        verify_hashes(opened)


@pytest.mark.parametrize("change", [lambda c: c + b"x", lambda c: c[:-1], lambda _: b""])
def test_a_wrong_size_is_found_without_hashing(tiny_bundle: Bundle, change: Callable[[bytes], bytes]) -> None:
    path = tiny_bundle.root / "llm/cpu/model.onnx"
    path.write_bytes(change(path.read_bytes()))
    refused(tiny_bundle.root, r"llm/cpu/model\.onnx has \d+ bytes, the manifest says 700")


def test_a_missing_file_is_named(tiny_bundle: Bundle) -> None:
    (tiny_bundle.root / "tokenizer.json").unlink()
    refused(tiny_bundle.root, r"tokenizer\.json is missing")


def test_a_folder_or_pipe_in_a_files_place_is_no_file(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.root / "tokenizer.json"
    path.unlink()
    path.mkdir()
    refused(tiny_bundle.root, "is missing")
    path.rmdir()
    os.mkfifo(path)
    refused(tiny_bundle.root, "is missing")


def test_a_newer_schema_asks_for_a_newer_program(tiny_bundle: Bundle) -> None:
    def newer(plain: dict[str, Any]) -> None:
        plain |= {"schema_version": 2, "field_of_the_future": 1}

    assert refused(edit(tiny_bundle, newer), "schema 2").remedy == "install a newer vlm-edge"


@pytest.mark.parametrize("version", [0, -1, "1", None, 1.0, True, [1], {}])
def test_other_schemas_are_refused(tiny_bundle: Bundle, version: object) -> None:
    refused(edit(tiny_bundle, lambda plain: plain.update(schema_version=version)), "schema")


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "../outside",
        "llm/../../outside",
        "..",
        ".",
        "",
        "a\\..\\..\\outside",
        "C:\\x",
        "a\0b",
        "~/x/..",
    ],
)
def test_a_path_that_leaves_the_bundle_is_refused(tiny_bundle: Bundle, path: str) -> None:
    (tiny_bundle.root.parent / "outside").write_bytes(b"{}")
    refused(edit(tiny_bundle, lambda plain: plain["artifacts"][2].update(path=path)), "outside the bundle")


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_that_leaves_the_bundle_is_refused(tiny_bundle: Bundle, what: str) -> None:
    outside = tiny_bundle.root.parent / "outside"
    if what == "file":
        outside.write_bytes(b"{}")
        (tiny_bundle.root / "tokenizer.json").unlink()
        (tiny_bundle.root / "tokenizer.json").symlink_to(outside)
    else:
        (tiny_bundle.root / "llm").rename(outside)
        (tiny_bundle.root / "llm").symlink_to(outside)
    refused(tiny_bundle.root, "links to a file outside the bundle")


def test_links_inside_the_bundle_and_to_it_are_fine(tiny_bundle: Bundle) -> None:
    (tiny_bundle.root / "tokenizer.json").rename(tiny_bundle.root / "t.json")
    (tiny_bundle.root / "tokenizer.json").symlink_to("t.json")
    link = tiny_bundle.root.parent / "link"
    link.symlink_to(tiny_bundle.root)
    verify_hashes(open_bundle(link))


def test_a_circle_of_links_is_an_error_and_not_a_hang(tiny_bundle: Bundle) -> None:
    (tiny_bundle.root / "tokenizer.json").unlink()
    (tiny_bundle.root / "tokenizer.json").symlink_to("tokenizer.json")
    refused(tiny_bundle.root, r"tokenizer\.json")


def test_a_name_too_long_for_any_file_is_refused(tiny_bundle: Bundle) -> None:
    refused(edit(tiny_bundle, lambda plain: plain["artifacts"][2].update(path="x" * 5000)), "cannot be read")


def test_unfinished_and_empty_folders_are_told_apart(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tiny_bundle.root / "manifest.json").unlink()
    refused(tiny_bundle.root, "was not finished")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "is empty")
    refused(tmp_path / "nothing", "is not a folder")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "is not a folder")


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"{", b"\xff\xfe", b'"x"', b"{}", b"[" * 100_000])
def test_what_is_no_manifest_is_refused(tiny_bundle: Bundle, content: bytes) -> None:
    (tiny_bundle.root / "manifest.json").write_bytes(content)
    refused(tiny_bundle.root, "manifest")


def test_unknown_missing_and_mistyped_fields_are_named(tiny_bundle: Bundle) -> None:
    error = refused(edit(tiny_bundle, lambda plain: plain["limits"].update(max_tile=1)), "max_tile")
    assert error.remedy == "did you mean 'max_tiles'?"


def test_the_disk_failing_is_an_error_of_the_bundle(tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied")

    opened = open_bundle(tiny_bundle.root)
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(DamagedBundle, match="Permission denied"):
        verify_hashes(opened)
    monkeypatch.setattr(Path, "is_file", fail)
    refused(tiny_bundle.root, "Permission denied")


def test_hashes_are_remembered_by_size_time_and_manifest(
    tiny_bundle: Bundle, own_cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []

    def counting(path: Path) -> str:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(bundles, "hash_file", counting)
    verify_hashes(tiny_bundle)
    assert len(hashed) == 3
    assert (own_cache_folder / "vlm-edge" / "verified").is_file()
    verify_hashes(tiny_bundle)
    assert len(hashed) == 3
    verify_hashes(tiny_bundle, force=True)
    assert len(hashed) == 6
    os.utime(tiny_bundle.root / "tokenizer.json", ns=(1, 1))
    verify_hashes(tiny_bundle)
    assert len(hashed) == 9
    verify_hashes(write_manifest(tiny_bundle.root, replace(tiny_bundle.manifest, name="other")))
    assert len(hashed) == 12


def test_a_verified_bundle_is_remembered_in_one_line(tiny_bundle: Bundle, own_cache_folder: Path) -> None:
    for _ in range(3):
        verify_hashes(tiny_bundle, force=True)
    assert len((own_cache_folder / "vlm-edge" / "verified").read_text().splitlines()) == 1


def test_a_bundle_that_failed_is_not_remembered(tiny_bundle: Bundle) -> None:
    path = tiny_bundle.root / "tokenizer.json"
    path.write_bytes(b"[]")
    for _ in range(2):
        with pytest.raises(DamagedBundle, match="SHA-256"):
            verify_hashes(tiny_bundle)


def test_without_a_cache_folder_files_are_hashed_every_time(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    verify_hashes(tiny_bundle)
    verify_hashes(tiny_bundle)


def test_a_damaged_cache_is_ignored(tiny_bundle: Bundle, own_cache_folder: Path) -> None:
    (own_cache_folder / "vlm-edge").mkdir()
    (own_cache_folder / "vlm-edge" / "verified").write_bytes(b"\xff\x00")
    verify_hashes(tiny_bundle)


def test_a_folder_whose_name_is_no_text_can_be_verified(tiny_bundle: Bundle) -> None:
    odd = tiny_bundle.root.parent / os.fsdecode(b"b\xff")
    tiny_bundle.root.rename(odd)
    verify_hashes(open_bundle(odd))


def test_a_write_is_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    with atomic_write(path) as stream:
        stream.write(b"old")
        assert not path.exists()
    assert path.read_bytes() == b"old"
    for error in (ValueError, KeyboardInterrupt):

        def fail(error: type[BaseException] = error) -> None:
            with atomic_write(path) as stream:
                stream.write(b"half")
                raise error

        with pytest.raises(error):
            fail()
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0" * 100_000)
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            content = path.read_bytes()
            seen.add((content[:1], len(content), len(set(content))))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(1, 10):
        with atomic_write(path) as stream:
            stream.write(str(i).encode() * 100_000)
    done.set()
    reader.join()
    assert {(length, kinds) for _, length, kinds in seen} == {(100_000, 1)}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_the_umask_says_who_may_read_what_is_written(tmp_path: Path, umask: int, mode: int) -> None:
    old = os.umask(umask)
    try:
        for _ in range(2):  # a file of its own, and one in another's place
            with atomic_write(tmp_path / "file") as stream:
                stream.write(b"x")
            assert (tmp_path / "file").stat().st_mode & 0o777 == mode
    finally:
        os.umask(old)


def test_new_artifacts_replace_those_of_the_same_path() -> None:
    old = [ArtifactRef("b", "1", 1), ArtifactRef("a", "2", 2)]
    new = [ArtifactRef("b", "3", 3), ArtifactRef("c", "4", 4)]
    assert [(a.path, a.bytes) for a in merge_artifacts(old, new)] == [("a", 2), ("b", 3), ("c", 4)]
