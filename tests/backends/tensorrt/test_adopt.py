"""An engine that trtexec wrote: taken in under this machine's key, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.backends.tensorrt.fake_tensorrt import FakeTensorRt
from vlm_edge.backends.tensorrt.adopt import adopt_engine
from vlm_edge.backends.tensorrt.build import build_engine, ensure_engine, find_engine
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import BadInput
from vlm_edge.units import MIB


@pytest.fixture
def built(trt: FakeTensorRt, graph: Path, settings: BuildSettings, tmp_path: Path) -> Path:
    """What a script leaves behind: an engine of any name, without a record."""
    path = tmp_path / "model.engine"
    path.write_bytes(build_engine(graph, tmp_path / "elsewhere", settings).read_bytes())
    trt.events.clear()
    return path


def test_an_adopted_engine_is_found_and_not_built_again(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, built: Path
) -> None:
    adopted = adopt_engine(built, graph, graph.parent, settings)
    assert adopted.read_bytes() == built.read_bytes()
    assert find_engine(graph) == ensure_engine(graph, graph.parent, settings) == adopted
    assert trt.events == []


def test_an_engine_that_tensorrt_refuses_is_refused(
    trt: FakeTensorRt, graph: Path, settings: BuildSettings, built: Path
) -> None:
    trt.engine_error = (
        "The engine plan file is generated on an incompatible device, expecting compute 8.9 got compute 8.7"
    )
    with pytest.raises(BadInput, match="incompatible device") as caught:
        adopt_engine(built, graph, graph.parent, settings)
    assert "build the engine again on this machine" in caught.value.remedy
    assert list(graph.parent.iterdir()) == [graph]


@pytest.mark.parametrize(
    ("most", "name", "said"), [(4, "pixel_values", r"\(3, 3, 4, 4\)"), (3, "images", "other inputs")]
)
def test_an_engine_for_other_views_is_refused(graph: Path, built: Path, most: int, name: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        adopt_engine(built, graph, graph.parent, BuildSettings(2, most, (3, 4, 4), 64 * MIB, name))


@pytest.mark.usefixtures("trt")
def test_a_missing_engine_is_named(graph: Path, settings: BuildSettings) -> None:
    with pytest.raises(BadInput, match=r"absent\.engine cannot be read"):
        adopt_engine(graph.with_name("absent.engine"), graph, graph.parent, settings)
