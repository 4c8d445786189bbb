"""A machine with a GPU and TensorRT, both pretended."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.backends.tensorrt import graphs
from tests.backends.tensorrt.fake_cuda import FakeCuda
from tests.backends.tensorrt.fake_tensorrt import FakeTensorRt
from vlm_edge.backends.tensorrt import cuda as driver
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.units import MIB


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda()
    monkeypatch.setattr(driver, "load_library", lambda: fake)
    return fake


@pytest.fixture
def trt(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt(cuda)
    monkeypatch.setitem(sys.modules, "tensorrt", fake.module())
    return fake


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    return graphs.encoder(tmp_path / "vision" / "model.onnx")


@pytest.fixture
def settings() -> BuildSettings:
    return BuildSettings(2, 3, (3, graphs.SIDE, graphs.SIDE), 64 * MIB)
