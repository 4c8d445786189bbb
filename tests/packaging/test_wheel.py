"""The wheel as a user gets it: what it holds, and whether it answers a question in an environment with nothing else.

No index is asked. The wheel itself is installed by pip. Its dependencies, found by walking the wheel's own metadata,
are linked from the environment that runs this test: a package that the wheel needs but does not declare is absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vlm_edge.core.resources import ResourceName, resource_dir

ROOT = Path(__file__).resolve().parents[2]
DATA_FOLDERS: tuple[ResourceName, ...] = ("recipes", "profiles", "calibration")
CHECKPOINT = ROOT / "recipes" / "nano" / "checkpoint"
QUESTION = "what is the total?"
# https://www.apache.org/licenses/LICENSE-2.0.txt, byte for byte
APACHE_2_SHA256 = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installation:
    """A virtual environment with the wheel in it, used from an unrelated, empty working directory."""

    folder: Path
    cwd: Path

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        home = str(self.cwd)
        env = {"PATH": os.defpath, "HOME": home, "XDG_CACHE_HOME": home, "HF_HUB_OFFLINE": "1", "LANG": "C.UTF-8"}
        command = [str(self.folder / "bin" / program), *arguments]
        return subprocess.run(command, cwd=self.cwd, env=env, capture_output=True, text=True, check=False)

    def ask_python(self, code: str) -> str:
        done = self.run("python", "-c", code)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def build(target: str, source: Path, folder: Path) -> Path:
    """`python -m hatchling build` of one target (wheel or sdist), in the current environment."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (artifact,) = folder.iterdir()
    return artifact


def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def files_under(folder: Path) -> set[str]:
    found = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder).as_posix() for path in found if not path.is_relative_to(CHECKPOINT)}


def closure(requirements: Iterable[str], extra: str = "") -> dict[str, Distribution]:
    """The installed distributions that `requirements` ask for on this platform, and all that those ask for."""
    pending = [(Requirement(text), extra) for text in requirements]
    walked: dict[tuple[str, str], Distribution] = {}
    while pending:
        requirement, wanted_by = pending.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": wanted_by}):
            continue
        installed = distribution(requirement.name)
        for wanted in ("", *requirement.extras):
            if (installed.name, wanted) not in walked:
                walked[installed.name, wanted] = installed
                pending += [(Requirement(text), wanted) for text in installed.requires or ()]
    return {installed.name: installed for installed in walked.values()}


def link_into(site_packages: Path, installed: Distribution) -> None:
    """Put each top-level file and folder of a distribution into `site_packages`; its scripts (`../`) stay out."""
    for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
        # Distributions may share a namespace folder, which is linked once and whole.
        if not (site_packages / top).exists():
            (site_packages / top).symlink_to(Path(str(installed.locate_file(top))))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installation(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """`pip install 'vlm-edge[cpu]'` into an empty environment."""
    folder = tmp_path_factory.mktemp("install") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    subprocess.run([*pip, "install", "--no-index", "--no-deps", str(wheel)], check=True, capture_output=True)
    site_packages = Path(sysconfig.get_path("purelib", scheme="venv", vars={"base": str(folder)}))
    (ours,) = distributions(name="vlm-edge", path=[str(site_packages)])
    for dependency in closure(ours.requires or (), extra="cpu").values():
        link_into(site_packages, dependency)
    done = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return Installation(folder, tmp_path_factory.mktemp("elsewhere"))


@pytest.mark.parametrize("name", DATA_FOLDERS)
def test_a_data_folder_is_shipped_whole_but_for_the_checkpoint(wheel: Path, name: str) -> None:
    prefix = f"vlm_edge/_data/{name}/"
    shipped = {member.removeprefix(prefix) for member in members(wheel) if member.startswith(prefix)}
    assert shipped
    assert shipped == files_under(ROOT / name)


def test_the_package_is_shipped_whole(wheel: Path) -> None:
    shipped = {member.removeprefix("vlm_edge/") for member in members(wheel) if member.startswith("vlm_edge/")}
    assert {member for member in shipped if not member.startswith("_data/")} == files_under(ROOT / "vlm_edge")
    assert {"py.typed", "nano/manifest.json"} <= shipped


def test_nothing_else_is_shipped(wheel: Path) -> None:
    tops = {member.partition("/")[0] for member in members(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vlm_edge"}
    folders = {part for member in members(wheel) for part in member.split("/")[:-1]}
    assert folders & {"tests", "benchmarks", "checkpoint", "__pycache__"} == set()


def test_the_license_is_the_whole_of_apache_2(wheel: Path) -> None:
    (name,) = (member for member in members(wheel) if member.endswith(".dist-info/licenses/LICENSE"))
    with zipfile.ZipFile(wheel) as archive:
        assert hashlib.sha256(archive.read(name)).hexdigest() == APACHE_2_SHA256


def test_a_wheel_built_from_the_source_distribution_is_the_same(wheel: Path, tmp_path: Path) -> None:
    archive = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        # Before 3.11.4 there is no filter; from 3.12 on its absence is a warning.
        packed.extraction_filter = getattr(tarfile, "data_filter", None)
        packed.extractall(tmp_path / "unpacked")
    (source,) = (tmp_path / "unpacked").iterdir()
    assert members(build("wheel", source, tmp_path / "wheel")) == members(wheel)


@pytest.mark.parametrize("name", DATA_FOLDERS)
def test_an_installed_wheel_finds_its_own_data(installation: Installation, name: str) -> None:
    code = f"from vlm_edge.core.resources import resource_dir; print(resource_dir({name!r}))"
    assert Path(installation.ask_python(code)).is_relative_to(installation.folder)


@pytest.mark.parametrize("package", ["torch", "transformers", "onnx"])
def test_the_environment_is_as_light_as_promised(installation: Installation, package: str) -> None:
    assert installation.ask_python(f"import importlib.util as u; print(u.find_spec({package!r}))") == "None"


def test_the_installed_command_knows_its_version(installation: Installation, wheel: Path) -> None:
    done = installation.run("vlm-edge", "--version")
    assert done.returncode == 0, done.stderr
    assert wheel.name.split("-")[1] in done.stdout


def test_the_installed_command_answers_a_question(installation: Installation) -> None:
    code = "from vlm_edge.core.resources import resource_dir; print(resource_dir('calibration') / 'pages')"
    pages = Path(installation.ask_python(code))
    questions = json.loads((pages / "receipt.json").read_text(encoding="utf-8"))["questions"]
    (expected,) = (item["answer"] for item in questions if item["question"] == QUESTION)

    done = installation.run("vlm-edge", "run", str(pages / "receipt.png"), QUESTION, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["answer"] == expected
    assert result["tokens"]["generated"] > 0


@pytest.mark.parametrize("name", DATA_FOLDERS)
def test_this_installation_finds_the_same_data(wheel: Path, name: ResourceName) -> None:
    prefix = f"vlm_edge/_data/{name}/"
    shipped = {member.removeprefix(prefix) for member in members(wheel) if member.startswith(prefix)}
    assert shipped == files_under(resource_dir(name))
