"""Bundles of every family whose hashes fit and whose content does not: an answer, or an error of ours."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from tests import runnable
from tests.core.test_bundle_fuzz import JSON_CHANGES, ODD_VALUES, places, seal
from tests.image_bytes import noise
from tests.pipeline.answering.test_hostile_bundles import reseal
from tests.runnable import Runnable
from vlm_edge import AskOptions
from vlm_edge.core.bundle import open_bundle
from vlm_edge.errors import VlmEdgeError

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
