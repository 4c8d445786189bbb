"""Finds the folders that ship with vlm-edge: recipes/, profiles/ and calibration/.

A wheel carries them inside the package, as `vlm_edge/_data/NAME`. An editable install or a plain checkout has them at
the root of the repository, beside the package, because build back ends do not map files in editable installs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from vlm_edge.errors import DamagedInstallation

ResourceName = Literal["recipes", "profiles", "calibration"]

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
