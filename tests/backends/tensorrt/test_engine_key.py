"""What an engine belongs to: readable and safe names, and a record that is not believed blindly."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.backends.tensorrt import graphs
from vlm_edge.backends.tensorrt import engine_key
from vlm_edge.backends.tensorrt.engine_key import EngineKey, Machine
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.units import MIB

MACHINE = Machine("NVIDIA GeForce RTX 4090", "8.9", "10.15.1.29")
KEY = EngineKey(MACHINE, "0" * 64, BuildSettings(4, 7, (3, 336, 336), 256 * MIB))


def test_names_are_readable() -> None:
    assert MACHINE.stem == "nvidia-geforce-rtx-4090-sm89-trt10.15.1.29"
    assert re.fullmatch(r"nvidia-geforce-rtx-4090-sm89-trt10\.15\.1\.29-[0-9a-f]{12}\.engine", KEY.file_name)


@settings(deadline=None)
@given(st.text(), st.text(max_size=8), st.text(max_size=40))
def test_names_are_safe_whatever_a_driver_says(gpu: str, capability: str, version: str) -> None:
    name = replace(KEY, machine=Machine(gpu, capability, version)).file_name
    assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*\.engine", name)
    assert len(name) < 160
    assert Path(name).name == name


@pytest.mark.parametrize(
    "other",
    [
        replace(KEY, machine=replace(MACHINE, gpu="NVIDIA GeForce RTX-4090")),
        replace(KEY, machine=replace(MACHINE, compute_capability="9.0")),
        replace(KEY, machine=replace(MACHINE, tensorrt="10.15.1.30")),
        replace(KEY, graph_sha256="1" + "0" * 63),
        replace(KEY, settings=replace(KEY.settings, max_views=8)),
        replace(KEY, settings=replace(KEY.settings, opt_views=3)),
        replace(KEY, settings=replace(KEY.settings, workspace_bytes=255 * MIB)),
        replace(KEY, settings=replace(KEY.settings, tf32=True)),
    ],
)
def test_every_part_changes_the_name(other: EngineKey) -> None:
    assert other.file_name != KEY.file_name


def written(folder: Path, key: EngineKey = KEY, content: bytes = b"engine") -> Path:
    return engine_key.publish(folder, key, content)


def test_a_record_reads_back(tmp_path: Path) -> None:
    engine = written(tmp_path)
    assert engine_key.read_record(engine).key == KEY
    assert engine_key.read_engine(engine, MACHINE) == b"engine"
    plain = json.loads((tmp_path / f"{engine.name}.json").read_text())
    assert plain["key"]["machine"] == {
        "gpu": "NVIDIA GeForce RTX 4090",
        "compute_capability": "8.9",
        "tensorrt": "10.15.1.29",
    }


@pytest.mark.parametrize(
    "here",
    [replace(MACHINE, gpu="Orin"), replace(MACHINE, compute_capability="8.7"), replace(MACHINE, tensorrt="11.0.0.1")],
)
def test_another_machine_is_told_what_the_engine_is_for(tmp_path: Path, here: Machine) -> None:
    with pytest.raises(BadInput) as caught:
        engine_key.read_engine(written(tmp_path), here)
    assert f"was built for {MACHINE}; this machine has {here}" in caught.value.message
    assert "build it again on this machine" in caught.value.remedy
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("content", [b"engine!", b"engin", b"Engine", b""])
def test_changed_bytes_are_refused(tmp_path: Path, content: bytes) -> None:
    engine = written(tmp_path)
    engine.write_bytes(content)
    with pytest.raises(DamagedBundle, match="was changed"):
        engine_key.read_engine(engine, MACHINE)


@pytest.mark.parametrize(
    ("find", "put"),
    [
        ('"schema_version": 1', '"schema_version": 2'),
        ('"schema_version": 1', '"schema_version": 1, "extra": 0'),
        ("8.9", "9.0"),
        ('"max_views": 7', '"max_views": 70'),
        ('"max_views": 7', '"max_views": "7"'),
        ('"max_views": 7', '"max_views": -7'),
        ("{", ""),
    ],
)
def test_a_record_that_was_edited_is_refused(tmp_path: Path, find: str, put: str) -> None:
    engine = written(tmp_path)
    path = engine_key.record_path(engine)
    path.write_text(path.read_text().replace(find, put))
    with pytest.raises(DamagedBundle):
        engine_key.read_engine(engine, MACHINE)


def test_an_engine_under_another_name_is_refused(tmp_path: Path) -> None:
    engine = written(tmp_path)
    moved = engine.rename(tmp_path / "mine.engine")
    engine_key.record_path(engine).rename(engine_key.record_path(moved))
    with pytest.raises(DamagedBundle, match="does not describe"):
        engine_key.read_record(moved)


def test_the_hash_covers_external_data(tmp_path: Path) -> None:
    graph = graphs.encoder(tmp_path / "model.onnx")
    alone = engine_key.graph_digest(graph)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(b"weights")
    first = engine_key.graph_digest(graph)
    data.write_bytes(b"Weights")
    assert len({alone, first, engine_key.graph_digest(graph)}) == 3
