"""The tensorrt module and the driver: absent, broken, too old, or only a folder of that name."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from tests.backends.tensorrt.fake_tensorrt import Severity
from vlm_edge.backends.tensorrt import cuda as driver
from vlm_edge.backends.tensorrt.library import import_tensorrt, open_log
from vlm_edge.errors import MissingDependency


def test_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependency, match="TensorRT is not installed") as caught:
        import_tensorrt()
    assert "pip install 'vlm-edge[tensorrt]'" in caught.value.remedy


@pytest.mark.parametrize(
    "error", ["ImportError('libnvinfer.so.10: no such file')", "FileNotFoundError('libnvinfer.so.10')"]
)
def test_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    (tmp_path / "tensorrt.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependency, match=r"cannot be imported: .*libnvinfer\.so\.10"):
        import_tensorrt()


@pytest.mark.parametrize("version", ["8.6.1", "9.2.0.5", "0", "ten"])
def test_too_old(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(MissingDependency, match="10 or newer is needed"):
        import_tensorrt()


def test_a_folder_of_that_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tensorrt").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    with pytest.raises(MissingDependency, match="without a version"):
        import_tensorrt()
    sys.modules.pop("tensorrt", None)


@pytest.mark.usefixtures("trt")
def test_the_log_keeps_errors_only_and_is_the_same_each_time() -> None:
    module = import_tensorrt()
    log = open_log(module)
    for severity in Severity:
        log.log(severity, f" {severity.name} ")
    assert log.errors == ["INTERNAL_ERROR", "ERROR"]
    assert open_log(module) is log


def test_without_a_driver_the_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-that-is-not-there.so.1")
    with pytest.raises(MissingDependency, match=r"libcuda-that-is-not-there\.so\.1 cannot be loaded"):
        driver.describe_gpu()
