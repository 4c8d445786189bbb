"""The generator of the calibration set: the same every time, and the set that ships is its own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from recipes.calibration.draw import KINDS
from recipes.calibration.make import SEED, make
from vlm_edge.core.resources import resource_dir

SHIPPED = resource_dir("calibration") / "quantize"


@pytest.mark.parametrize("kind", sorted({kind.__name__ for kind in KINDS}))
def test_a_seed_draws_one_picture(kind: str) -> None:
    draw = next(found for found in KINDS if found.__name__ == kind)
    first, again, other = (draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first.image.tobytes() == again.image.tobytes()
    assert (first.question, first.answer) == (again.question, again.answer)
    assert first.image.tobytes() != other.image.tobytes()
    assert first.question
    assert first.answer.endswith(".") or kind == "letter"


def test_the_set_that_ships_comes_from_here(tmp_path: Path) -> None:
    make(tmp_path)
    # Questions and answers depend on the seed alone; how letters are drawn, on Pillow's version.
    assert (tmp_path / "samples.jsonl").read_bytes() == (SHIPPED / "samples.jsonl").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in SHIPPED.iterdir()}
    about = json.loads((SHIPPED / "about.json").read_text())
    assert about["seed"] == SEED
    if about["pillow"] == PIL.__version__:
        for path in SHIPPED.glob("*.png"):
            assert Image.open(path).tobytes() == Image.open(tmp_path / path.name).tobytes()
