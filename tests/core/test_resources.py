"""resource_dir: the wheel's place, the checkout's place, and a remedy where there is neither."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge.core import resources
from vlm_edge.errors import DamagedInstallation

ROOT = Path(__file__).resolve().parents[2]
NAMES: tuple[resources.ResourceName, ...] = ("recipes", "profiles", "calibration")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty installation: `<tmp>/vlm_edge` with nothing in it or beside it."""
    folder = tmp_path / "vlm_edge"
    folder.mkdir()
    monkeypatch.setattr(resources, "_PACKAGE_DIR", folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_this_checkout_has_every_folder_whatever_the_working_directory(
    name: resources.ResourceName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resources.resource_dir(name) == ROOT / name


def test_a_wheel_keeps_the_folder_inside_the_package(package: Path) -> None:
    (package / "_data" / "profiles").mkdir(parents=True)
    assert resources.resource_dir("profiles") == package / "_data" / "profiles"


def test_a_checkout_keeps_the_folder_beside_the_package(package: Path) -> None:
    (package.parent / "pyproject.toml").touch()
    (package.parent / "recipes").mkdir()
    assert resources.resource_dir("recipes") == package.parent / "recipes"


def test_a_neighbour_in_site_packages_is_not_taken_for_ours(package: Path) -> None:
    (package.parent / "recipes").mkdir()
    with pytest.raises(DamagedInstallation, match="recipes/ folder"):
        resources.resource_dir("recipes")


def test_a_missing_folder_names_both_places_and_a_remedy(package: Path) -> None:
    with pytest.raises(DamagedInstallation) as caught:
        resources.resource_dir("calibration")
    assert str(package / "_data" / "calibration") in caught.value.message
    assert str(package.parent / "calibration") in caught.value.message
    assert "reinstall" in caught.value.remedy
    assert caught.value.exit_code == 2
