"""The memory-mapped table against the safetensors library, and files that only look like one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.errors import DamagedBundle

Header = dict[str, Any]


def stored(path: Path, table: np.ndarray, metadata: dict[str, str] | None = None) -> Path:
    save_file({"embed": table}, path, metadata=metadata)
    return path


def table_of(rows: int, width: int, kind: type[np.floating]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, width)).astype(kind)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(128, 256), (1, 1), (3, 7)])
@pytest.mark.parametrize("metadata", [None, {"format": "np", "note": "x" * 99}])
def test_rows_are_those_that_safetensors_wrote(
    tmp_path: Path, kind: type[np.floating], shape: tuple[int, int], metadata: dict[str, str] | None
) -> None:
    table = table_of(*shape, kind)
    opened = EmbeddingTable(stored(tmp_path / "embed.safetensors", table, metadata))
    assert opened.shape == shape
    tokens = [0, shape[0] - 1, 0]
    rows = opened.rows(tokens)
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[tokens].astype(np.float32))
    assert opened.rows([]).shape == (0, shape[1])


def test_bf16_rows_are_those_that_torch_reads(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file as save_tensors

    table = torch.randn(9, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    table[3, 2], table[3, 3], table[3, 4] = float("-inf"), -0.0, 1e-40  # a subnormal, which fp16 does not hold
    save_tensors({"embed": table}, tmp_path / "e")
    rows = EmbeddingTable(tmp_path / "e").rows([8, 3])
    assert rows.dtype == np.float32
    np.testing.assert_array_equal(rows, table[[8, 3]].float().numpy())


@pytest.mark.parametrize("token", [-1, 128, 1 << 40])
def test_a_token_beyond_the_table_is_an_error_of_the_bundle(tmp_path: Path, token: int) -> None:
    opened = EmbeddingTable(stored(tmp_path / "e", table_of(128, 4, np.float16)))
    with pytest.raises(DamagedBundle, match="128 rows"):
        opened.rows([5, token])


def test_the_table_stays_on_disk(tmp_path: Path) -> None:
    opened = EmbeddingTable(stored(tmp_path / "e", table_of(128, 4, np.float16)))
    assert isinstance(opened._rows, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        opened._rows[0] = 0


def rewritten(path: Path, change: Callable[[Header], object]) -> None:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = json.dumps(change(header) or header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def entry(**fields: object) -> Callable[[Header], None]:
    return lambda header: header["embed"].update(fields)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: [header],
        lambda _: {"only": None},
        lambda _: {"__metadata__": {}},
        lambda header: header.update(second=header["embed"]),
        lambda header: header["embed"].pop("shape") and None,
        entry(dtype="F64"),
        entry(dtype="I64"),
        entry(dtype=["F16"]),
        entry(shape=[128]),
        entry(shape=[4, 128, 1]),
        entry(shape=[-4, -128]),
        entry(shape=[0, 1 << 62]),
        entry(shape=[128.0, 4.0]),
        entry(shape="ab"),
        entry(shape=None),
        entry(shape=[64, 4]),
        entry(data_offsets=[0, 1 << 70]),
        entry(data_offsets=[512, 1536]),
        entry(data_offsets=[-1024, 0]),
        entry(data_offsets=[0]),
        entry(data_offsets="ab"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, change: Callable[[Header], object]) -> None:
    path = stored(tmp_path / "e", table_of(128, 4, np.float16))
    rewritten(path, change)
    with pytest.raises(DamagedBundle, match="no embedding table"):
        EmbeddingTable(path)


def headed(length: int, content: bytes) -> bytes:
    return length.to_bytes(8, "little") + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 8,
        b"\xff" * 64,
        headed(5, b"{}"),
        headed(2, b"{}"),
        headed(4, b"\xff" * 4),
        headed(90_000, b"[" * 90_000),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "e").write_bytes(content)
    with pytest.raises(DamagedBundle, match="no embedding table"):
        EmbeddingTable(tmp_path / "e")


@pytest.mark.parametrize("change", [lambda c: c[:-1], lambda c: c + b"\0", lambda c: c[:100]])
def test_a_file_that_is_cut_or_longer_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = stored(tmp_path / "e", table_of(128, 4, np.float16))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(DamagedBundle, match="no embedding table"):
        EmbeddingTable(path)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedBundle, match="no embedding table"):
        EmbeddingTable(tmp_path / "e")
