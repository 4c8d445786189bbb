"""Finds the folders that ship with vlm-edge: recipes/, profiles/ and calibration/.

A wheel carries them inside the package, as `vlm_edge/_data/NAME`. An editable install or a plain checkout has them at
the root of the repository, beside the package, because build back ends do not map files in editable installs.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from vlm_edge.errors import BadInput, DamagedInstallation

ResourceName = Literal["recipes", "profiles", "calibration"]

_SUFFIXES = (".yaml", ".yml", ".json")
_PACKAGE_DIR = Path(__file__).resolve().parents[1]


def resource_dir(name: ResourceName) -> Path:
    """The absolute path of a shipped folder, in whichever of the two places this installation has it.

    Raises DamagedInstallation if it is in neither.
    """
    shipped = _PACKAGE_DIR / "_data" / name
    if shipped.is_dir():
        return shipped
    checkout = _PACKAGE_DIR.parent
    # Without the project file beside it, the package lies in site-packages, and a `recipes` there is somebody else's.
    if (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir():
        return checkout / name
    raise DamagedInstallation(
        f"the {name}/ folder of vlm-edge is missing: neither {shipped} nor a checkout's {checkout / name} exists",
        remedy="reinstall: pip install --force-reinstall --no-deps vlm-edge (in a checkout: git restore the folder)",
    )


def shipped_names(folder: ResourceName) -> list[str]:
    """The YAML files of a shipped folder, by name."""
    return sorted(path.stem for path in resource_dir(folder).glob("*.yaml"))


def shipped_file(folder: ResourceName, name: str, what: str) -> Path:
    """A file by path where `name` has a suffix, else the shipped one.  Raises BadInput with the nearest names; what: for it."""
    path = Path(name)
    if path.suffix in _SUFFIXES:
        return path
    known = shipped_names(folder)
    if name not in known:
        raise BadInput(f"there is no {what} {name[:60]!r}", remedy=nearest(name, known))
    return resource_dir(folder) / f"{name}.yaml"


def nearest(name: str, known: list[str]) -> str:
    """A remedy that names what was probably meant, or everything there is."""
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(known)}"
