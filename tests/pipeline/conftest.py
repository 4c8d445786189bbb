"""A tiny language model and calibration data for it, made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import quantizable


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantizable.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, quantizable.save_text(folder)
