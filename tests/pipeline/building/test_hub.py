"""`build` of models of the hub: planned before their weights come, and named by id and commit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from tests import buildable
from tests.fake_hub import COMMIT, FakeHub, serving
from vlm_edge.errors import BadInput, DoesNotFit
from vlm_edge.pipeline.building.build import build_model
from vlm_edge.units import MIB

ID = "made-here/tiny-llava"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(checkpoint, calibration data)"""
    return buildable.save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def hub(saved: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    monkeypatch.chdir(tmp_path)
    known = FakeHub({ID: saved[0]})
    with serving(known, tmp_path / "cache"):
        yield known


@pytest.mark.parametrize(
    ("options", "error"), [({"max_memory_bytes": 300 * MIB}, DoesNotFit), ({"budget": "50MiB"}, DoesNotFit)]
)
def test_what_does_not_fit_is_refused_before_its_weights_come(
    options: dict, error: type[Exception], hub: FakeHub, saved: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(error):
        build_model(ID, tmp_path / "out", buildable.recipe(tmp_path), buildable.options(saved[1], **options))
    assert "config.json" in hub.served
    assert not [name for name in hub.served if name.endswith(".safetensors")]


def test_a_recipe_of_another_family_likewise(hub: FakeHub, saved: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = buildable.recipe(tmp_path, family="paligemma", defaults={"tiling": "grid", "reduce": "none"})
    with pytest.raises(BadInput, match=r"the recipe tiny is for paligemma, and made-here/tiny-llava is of .* llava"):
        build_model(ID, tmp_path / "out", recipe, buildable.options(saved[1]))
    assert not [name for name in hub.served if name.endswith(".safetensors")]


def test_the_bundle_says_where_its_model_is_from(hub: FakeHub, saved: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, options = buildable.recipe(tmp_path), buildable.options(saved[1], method="rtn", measure=False)
    with buildable.quickly():
        built = build_model(ID, tmp_path / "out", recipe, options)
    manifest = built.bundle.manifest
    assert manifest.name == "tiny-llava"
    assert (manifest.source["model"], manifest.source["revision"]) == (ID, COMMIT)
    hub.models.clear()  # from now on the cache has to do
    offline = buildable.options(saved[1], method="rtn", measure=False, offline=True, revision=COMMIT)
    again = build_model(ID, tmp_path / "out", recipe, offline)
    assert [step.name for step in again.steps if not step.skipped] == ["plan"]
