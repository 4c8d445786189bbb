"""Checkpoint folders: what is in them against the safetensors library, and every way in which one can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from tests.core.shard_files import (
    CONFIG,
    SHARDS,
    TENSORS,
    data_of,
    header_of,
    index_of,
    shard,
    valid_shard,
    write_sharded,
    write_single,
)
from vlm_edge.core import shards
from vlm_edge.core.checkpoint import Checkpoint, open_checkpoint
from vlm_edge.core.shards import (
    MAX_HEADER_BYTES,
    Piece,
    read_header,
    read_into,
    read_tensor,
    same_bytes,
    write_copies,
    write_pieces,
)
from vlm_edge.errors import BadInput

ROOT = Path(__file__).parents[2]
FIRST, SECOND = SHARDS


def refusal(root: Path) -> str:
    with pytest.raises(BadInput) as caught:
        open_checkpoint(root)
    assert caught.value.remedy
    assert "\n" not in caught.value.message + caught.value.remedy
    return caught.value.message


@pytest.mark.parametrize("write", [write_single, write_sharded])
def test_a_checkpoint_holds_what_the_library_reads(write: Callable[[Path], Path], tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write(tmp_path))
    assert dict(checkpoint.config) == CONFIG
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, tensor in checkpoint.tensors.items():
        with safe_open(tensor.path, "np") as reference:
            assert list(tensor.shape) == reference.get_slice(name).get_shape()
            assert tensor.dtype == reference.get_slice(name).get_dtype()
            if tensor.dtype != "BF16":  # NumPy has no such type
                assert read_tensor(tensor) == reference.get_tensor(name).tobytes()


def test_a_tensors_bytes_are_those_at_its_offsets(tmp_path: Path) -> None:
    checkpoint, header = open_checkpoint(write_single(tmp_path)), header_of(list(TENSORS))
    for name, tensor in checkpoint.tensors.items():
        begin, end = header[name]["data_offsets"]
        assert read_tensor(tensor) == data_of(header)[begin:end]
    buffer = bytearray(24)
    read_into(checkpoint.tensors["vision_tower.weight"], memoryview(buffer).cast("f"))
    assert buffer == data_of(header)[:24]
    with pytest.raises(ValueError, match="buffer of 25"):
        read_into(checkpoint.tensors["vision_tower.weight"], memoryview(bytearray(25)))


def test_a_checkpoint_cannot_be_changed(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_single(tmp_path))
    with pytest.raises(TypeError):
        checkpoint.tensors["x"] = checkpoint.tensors["vision_tower.bias"]  # type: ignore[index]
    with pytest.raises(AttributeError):
        checkpoint.root = tmp_path  # type: ignore[misc]


def test_files_beside_the_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_single(tmp_path))
    (tmp_path / "preprocessor_config.json").write_text('{"do_resize": true}')
    assert checkpoint.json("preprocessor_config.json") == {"do_resize": True}
    assert checkpoint.optional_json("preprocessor_config.json") == {"do_resize": True}
    assert checkpoint.optional_json("generation_config.json") is None
    with pytest.raises(BadInput, match=r"no generation_config\.json"):
        checkpoint.json("generation_config.json")
    (tmp_path / "generation_config.json").write_text("[1]")
    with pytest.raises(BadInput, match="no JSON object"):
        checkpoint.optional_json("generation_config.json")


def test_a_hub_cache_of_links_into_another_folder_opens(tmp_path: Path) -> None:
    write_sharded(tmp_path / "blobs")
    snapshot = tmp_path / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    for file in (tmp_path / "blobs").iterdir():
        (snapshot / file.name).symlink_to(file)
    assert set(open_checkpoint(snapshot).tensors) == set(TENSORS)


def test_a_single_file_goes_before_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    write_single(tmp_path, valid_shard(["vision_tower.bias"]))
    assert set(open_checkpoint(tmp_path).tensors) == {"vision_tower.bias"}


def test_copies_are_read_by_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "COPY_BYTES", 7)  # several chunks, the last one short
    tensors = open_checkpoint(write_sharded(tmp_path)).tensors
    copies = {f"copy.{number}": tensor for number, tensor in enumerate(tensors.values())}
    target = tmp_path / "copy.safetensors"
    with target.open("wb") as stream:
        write_copies(stream, copies)
    written = read_header(target)
    with safe_open(target, "np") as reference:
        assert set(reference.keys()) == set(copies)
        assert reference.metadata() == {"format": "pt"}
    for name, source in copies.items():
        assert (written[name].dtype, written[name].shape) == (source.dtype, source.shape)
        assert read_tensor(written[name]) == read_tensor(source)
        assert same_bytes(written[name], source)
    assert not same_bytes(written["copy.0"], written["copy.1"])
    changed = bytearray(target.read_bytes())
    changed[written["copy.0"].start + 20] ^= 1
    target.write_bytes(changed)
    assert not same_bytes(written["copy.0"], tensors["vision_tower.weight"])


def test_no_framework_is_needed(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    program = (
        "import sys; from pathlib import Path; from vlm_edge.core.checkpoint import open_checkpoint\n"
        f"print(len(open_checkpoint(Path({str(tmp_path)!r})).tensors))\n"
        "print({'torch', 'numpy', 'safetensors', 'transformers', 'pydantic'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [str(len(TENSORS)), "set()"]


# Folders


@pytest.mark.parametrize(
    ("files", "message", "remedy"),
    [
        ({}, "has no config.json", "Hugging Face checkpoint"),
        ({"config.json": "{}"}, "has no weights", "model.safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "a pickle", "safe_serialization=True"),
        ({"config.json": "{}", "pytorch_model-00001-of-00002.bin": "x"}, "a pickle", "safe_serialization=True"),
        ({"config.json": "{}", "consolidated.00.pth": "x"}, "a pickle", "safe_serialization=True"),
        ({"model-q4_0.gguf": "GGUF"}, "a GGUF file", "original Hugging Face checkpoint"),
        ({"config.json": "{}", "adapter_model.safetensors": "x"}, "only a LoRA adapter", "merge it"),
        ({"config.json": "{}", FIRST: "x"}, "shards without model.safetensors.index.json", "download"),
        ({"config.json": "{}", "consolidated.safetensors": "x"}, "under other names", "save_pretrained"),
        ({"config.json": "{}", "tf_model.h5": "x"}, "TensorFlow weights", "original"),
        ({"config.json": "{", "model.safetensors": "x"}, "config.json is not valid JSON", "download"),
        ({"config.json": '{"a": 1, "a": 2}', "model.safetensors": "x"}, "'a' stands there twice", "download"),
        ({"config.json": "[]", "model.safetensors": "x"}, "config.json is no JSON object", "download"),
        ({"config.json": "[" * 100_000, "model.safetensors": "x"}, "nested too deeply", "download"),
        ({"config.json": '{"auto_map": {"AutoModel": "a.B"}}', "model.safetensors": "x"}, "auto_map", "-hf"),
    ],
)
def test_folders_that_are_no_checkpoint(files: dict[str, str], message: str, remedy: str, tmp_path: Path) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(BadInput) as caught:
        open_checkpoint(tmp_path)
    assert message in caught.value.message
    assert remedy in caught.value.remedy
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("name", ["missing", "file", "x" * 300, "nul\0"])
def test_what_is_no_folder(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "is not a folder" in refusal(tmp_path / name)


def test_a_folder_in_place_of_a_file(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    refusal(tmp_path)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").mkdir()
    refusal(tmp_path)


# Indexes


def changed_index(change: Callable[[dict[str, Any]], Any]) -> Any:
    index = index_of()
    change(index["weight_map"])
    return index


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "a/../../b", "", ".", "..\\b", "C:\\b", "nul\0", "a\\b"]
)
def test_an_index_that_leaves_the_folder(file: str, tmp_path: Path) -> None:
    index = changed_index(lambda weight_map: weight_map.update({"vision_tower.bias": file}))
    assert "a file outside the checkpoint" in refusal(write_sharded(tmp_path, index))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "'a' stands there twice"),
        (b"\xff", "cannot be read"),
        ([], "no JSON object"),
        ({}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ({"weight_map": {"a": 1}}, "no weight_map"),
        ({"weight_map": {"a": None}}, "no weight_map"),
        ({"weight_map": {}}, "without a tensor"),
        ({"weight_map": {"a": "x" * 300}}, "lacks 1 shard"),
        ({"weight_map": {"a": "\ud800"}}, r"lacks 1 shard: '\ud800'"),
    ],
)
def test_indexes_that_say_nothing_usable(index: Any, message: str, tmp_path: Path) -> None:
    assert message in refusal(write_sharded(tmp_path, index))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    (tmp_path / SECOND).unlink()
    assert f"lacks 1 shard: '{SECOND}'" in refusal(tmp_path)


def test_five_of_many_missing_shards_are_named(tmp_path: Path) -> None:
    index = {"weight_map": {f"t{number}": f"part-{number}.safetensors" for number in range(9)}}
    message = refusal(write_sharded(tmp_path, index))
    assert "lacks 9 shards" in message
    assert [f"part-{number}." in message for number in range(9)] == [True] * 5 + [False] * 4


def test_a_tensor_that_its_shard_lacks_is_named(tmp_path: Path) -> None:
    index = changed_index(lambda weight_map: weight_map.update({"vision_tower.scale": FIRST}))
    message = refusal(write_sharded(tmp_path, index))
    assert "'vision_tower.scale'" in message
    assert FIRST in message


# Headers


def altered(name: str = "vision_tower.weight", **changes: Any) -> bytes:
    header = header_of(list(TENSORS))
    data = data_of(header)
    header[name].update(changes)
    return shard(header, data)


VALID = valid_shard()
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "too few"),
    "seven bytes": (b"\1\0\0\0\0\0\0", "too few"),
    "length beyond the file": (shard({}, b"", length=3), "claims 3 bytes, the file has 10"),
    "length of exabytes": (shard(header_of(["vision_tower.bias"]), b"", length=1 << 63), "truncated"),
    "length of zero": (shard({}, b"", length=0), "no JSON object"),
    "a web page": (b"<!DOCTYPE html><html>", "truncated, or no safetensors file"),
    "a pointer of Git LFS": (b"version https://git-lfs.github.com/spec/v1\n", "truncated, or no safetensors file"),
    "truncated data": (VALID[:-1], "truncated"),
    "truncated header": (VALID[:40], "truncated"),
    "more data": (VALID + b"\0", "1 bytes at its end"),
    "no JSON": (shard(b"{]", b""), "not valid JSON"),
    "no object": (shard(b"[]", b""), "no JSON object"),
    "no UTF-8": (shard(b'{"\xff": 1}', b""), "not UTF-8"),
    "deep": (shard(b'{"a":' * 50_000, b""), "nested too deeply"),
    "a long number": (shard(b'{"a":' + b"9" * 5000 + b"}", b""), "not valid JSON"),
    "a key twice": (shard(b'{"a": {}, "a": {}}', b""), "'a' stands there twice"),
    "a field twice": (shard(b'{"a": {"dtype": "F32", "dtype": "F16"}}', b""), "'dtype' stands there twice"),
    "metadata of numbers": (shard({"__metadata__": {"a": 1}}, b""), "__metadata__"),
    "metadata a list": (shard({"__metadata__": []}, b""), "__metadata__"),
    "a description that is none": (shard({"a": 3}, b""), "not described by"),
    "unknown dtype": (altered(dtype="F31"), "unknown dtype 'F31'"),
    "dtype a list": (altered(dtype=["F32"]), "unknown dtype"),
    "no dtype": (altered(dtype=None), "unknown dtype"),
    "another dtype": (altered(dtype="F64"), "cannot have 24 bytes"),
    "another shape": (altered(shape=[2, 4]), "cannot have 24 bytes"),
    "a negative side": (altered(shape=[-2, -3]), "impossible shape"),
    "a side that is a truth value": (altered(shape=[True, 6]), "impossible shape"),
    "a side that is a fraction": (altered(shape=[2.0, 3]), "impossible shape"),
    "a huge side": (altered(shape=[1 << 64]), "impossible shape"),
    "too many sides": (altered(shape=[1] * 1000), "impossible shape"),
    "a shape that is none": (altered(shape=6), "impossible shape"),
    "an overflowing shape": (altered(shape=[1 << 62, 1 << 62]), "cannot have 24 bytes"),
    "offsets turned round": (altered(data_offsets=[24, 0]), "impossible data_offsets"),
    "one offset": (altered(data_offsets=[24]), "impossible data_offsets"),
    "negative offsets": (altered(data_offsets=[-24, 0]), "impossible data_offsets"),
    "offsets beyond the file": (altered(data_offsets=[1 << 40, (1 << 40) + 24]), "truncated"),
    "overlap": (altered("vision_tower.bias", data_offsets=[20, 26]), "overlaps"),
    "half a byte": (shard({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, b"12"), "cannot have 2 bytes"),
    "a hole at the start": (
        shard({"a": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}, b"12"), "leaves a hole",
    ),
    "a field too many": (altered(extra=1), "not described by"),
    "a long name": (shard({"a\n" * 500: {}}, b""), r"a\na\na"),
    "a name that is no text": (shard({"\ud800": {}}, b""), r"holds '\ud800', which is no text"),
    "metadata that are no text": (shard({"__metadata__": {"a": "\ud800"}}, b""), "which is no text"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_lie(kind: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[kind]
    found = refusal(write_single(tmp_path, content))
    assert message in found
    assert len(found) < 1000
    found.encode("utf-8")


def test_a_header_that_would_fill_the_memory_is_not_read(tmp_path: Path) -> None:
    write_single(tmp_path)
    with (tmp_path / "model.safetensors").open("wb") as stream:
        stream.write((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + b"{")
        stream.truncate(MAX_HEADER_BYTES + 100)
    assert "more than any real checkpoint has" in refusal(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    checkpoint: Checkpoint = open_checkpoint(write_single(tmp_path))
    path, last = tmp_path / "model.safetensors", checkpoint.tensors["language_model.step"]
    os.truncate(path, last.start + 3)
    with pytest.raises(BadInput, match="became shorter"):
        read_tensor(last)
    path.unlink()
    for use in (lambda: read_tensor(last), lambda: same_bytes(last, replace(last, name="other"))):
        with pytest.raises(BadInput, match="cannot be read"):
            use()
    with pytest.raises(BadInput, match="cannot be read"), (tmp_path / "out").open("wb") as stream:
        write_copies(stream, {"a": last})


def test_metadata_may_be_left_out(tmp_path: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    padded = json.dumps(header).encode() + b"   "  # writers align the data with spaces
    assert set(open_checkpoint(write_single(tmp_path, shard(padded, b"1"))).tensors) == {"a"}


def test_pieces_become_a_file_that_reads_back(tmp_path: Path) -> None:
    pieces = {
        "b": Piece("F16", (2, 2), lambda: iter([b"\0\0\0\x3c", b"\0\x40\0\x42"])),
        "a": Piece("I32", (1,), lambda: iter([b"\x01\0\0\x80"])),
    }
    for order in (("a", "b"), ("b", "a")):
        with (tmp_path / f"{order[0]}.safetensors").open("wb") as stream:
            write_pieces(stream, {name: pieces[name] for name in order})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    found = load_file(tmp_path / "a.safetensors")
    assert found["a"].tolist() == [-(2**31) + 1]
    assert found["b"].tolist() == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize("data", [b"", b"\0" * 6])
def test_pieces_that_are_not_as_long_as_they_say(data: bytes, tmp_path: Path) -> None:
    with (tmp_path / "a.safetensors").open("wb") as stream, pytest.raises(ValueError, match=f"{len(data)} bytes for a"):
        write_pieces(stream, {"a": Piece("F16", (2,), lambda: iter([data]))})
