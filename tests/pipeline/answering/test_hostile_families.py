"""Bundles of every family whose hashes fit and whose content does not: an answer, or an error of ours."""

from __future__ import annotations

import json
import random
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import runnable
from tests.core.test_bundle_fuzz import JSON_CHANGES, ODD_VALUES, places, seal
from tests.image_bytes import noise
from tests.pipeline.answering.test_hostile_bundles import reseal
from tests.runnable import Runnable
from vlm_edge import AskOptions
from vlm_edge.core.bundle import open_bundle
from vlm_edge.errors import BadInput, VlmEdgeError

FAMILIES = tuple(runnable.SPECIAL)
MANIFESTS, CONTENTS = 24, 12
IMAGE = noise(61, 90)


@pytest.fixture(scope="module", params=FAMILIES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runnable:
    return runnable.make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture
def copy(made: Runnable, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.bundle.root, tmp_path / "copy"))


def asked(made: Runnable, root: Path) -> VlmEdgeError | str:
    try:
        pipeline, _ = Runnable(made.family, made.model, made.processor, open_bundle(root)).pipeline()
        return pipeline.ask(IMAGE, "what is the total?", AskOptions(max_new_tokens=2)).text
    except VlmEdgeError as error:
        return error


def outcome(made: Runnable, root: Path) -> bool:
    """Whether it answers; what it raises must be an error of ours, in its form."""
    result = asked(made, root)
    if isinstance(result, VlmEdgeError):
        assert result.remedy
        assert len(result.message) < 2000
        return False
    return True


def test_manifests(made: Runnable, copy: Path) -> None:
    path = copy / "manifest.json"
    original = json.loads(path.read_text())
    rng = random.Random(7)
    answers = 0
    for _ in range(MANIFESTS):
        plain = json.loads(json.dumps(original))
        part = plain["model"]["geometry"] if rng.random() < 0.5 else plain[rng.choice(("model", "limits", "defaults"))]
        container, key = rng.choice(list(places(part)))
        if isinstance(container[key], int) and rng.random() < 0.6:
            container[key] = int(container[key]) + rng.choice((-1, 1, -int(container[key]), 7, 1 << 10, 1 << 33))
        else:
            container[key] = rng.choice(ODD_VALUES)
        path.write_bytes(seal(json.dumps(plain).encode()))
        answers += outcome(made, copy)
    assert answers < MANIFESTS / 2


def test_contents(made: Runnable, copy: Path) -> None:
    names = ("config.json", "preprocessor_config.json", "tokenizer_config.json", "tokenizer.json")
    originals = {name: (copy / name).read_bytes() for name in names}
    rng = random.Random(8)
    answers = 0
    for _ in range(CONTENTS):
        name = rng.choice(names)
        (copy / name).write_bytes(rng.choice(JSON_CHANGES)(originals[name], rng))
        answers += outcome(made, reseal(copy))
        (copy / name).write_bytes(originals[name])
    assert 0 < answers < CONTENTS


IMAGES = {
    "a pixel": noise(1, 1),
    "1 px wide": noise(300, 1),
    "1 px high and 30,000 wide": noise(1, 30_000),
    "a strip": noise(60, 30_000),
    "blank": np.full((150, 200, 3), 255, np.uint8),
    "noise": noise(150, 200),
}
TOO_LONG = {"1 px wide", "1 px high and 30,000 wide", "a strip"}
REFUSED = {
    "idefics2": {"auto": set(IMAGES)},
    "paligemma": {"auto": set(IMAGES)},
    "llava": {"auto": set(IMAGES)},
    "qwen2_vl": {"auto": TOO_LONG, "none": TOO_LONG},
    "qwen2_5_vl": {"auto": TOO_LONG, "none": TOO_LONG},
}
"""What a family does not take: tiles that it does not have (LLaVA: that no recipe planned for), sides of more than 200:1."""
MOST_BYTES = 64 << 20
"""For an image that takes 5 MiB decoded."""


@pytest.mark.parametrize("tiling", ["auto", "none"])
def test_images_of_any_shape(made: Runnable, tiling: str) -> None:
    pipeline, _ = made.pipeline()
    for name, image in IMAGES.items():
        tracemalloc.start()
        if name in REFUSED.get(made.family, {}).get(tiling, ()):
            with pytest.raises(BadInput) as caught:
                pipeline.ask(image, "what is it?", AskOptions(tiling=tiling))
            assert caught.value.remedy
        else:
            answer = pipeline.ask(image, "what is it?", AskOptions(tiling=tiling, max_new_tokens=1))
            assert 0 < answer.tokens.visual_after <= answer.tokens.visual_before <= 100
            assert answer.tiles == () or tiling == "auto"
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < MOST_BYTES, name


@pytest.mark.parametrize(
    ("options", "says"),
    [({"max_tiles": 999}, "--max-tiles 999 exceeds"), ({"reduce": "tome", "keep": 1e-9}, ""), ({"keep": 1.0}, "")],
)
def test_options_at_their_ends(made: Runnable, options: dict[str, Any], says: str) -> None:
    pipeline, _ = made.pipeline()
    fixed = made.family in ("idefics2", "qwen2_vl", "qwen2_5_vl") and "reduce" in options
    if says or fixed:
        with pytest.raises(BadInput, match=says or "--reduce tome") as caught:
            pipeline.ask(IMAGE, "what is it?", AskOptions(**options))
        assert caught.value.remedy
    else:
        counts = pipeline.ask(IMAGE, "what is it?", AskOptions(**options, max_new_tokens=1)).tokens
        assert 0 < counts.visual_after <= counts.visual_before


def test_a_family_for_the_planner_alone_is_not_run(made: Runnable, copy: Path) -> None:
    path = copy / "manifest.json"
    plain = json.loads(path.read_text())
    plain["model"]["family"] = "mllama"
    path.write_bytes(seal(json.dumps(plain).encode()))
    error = asked(made, copy)
    assert isinstance(error, BadInput)
    assert "can be planned, not run" in error.message
