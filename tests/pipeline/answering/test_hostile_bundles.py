"""Bundles whose hashes all fit and whose content does not: loading and asking raise VlmEdgeError or nothing at all."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.core.test_bundle_fuzz import JSON_CHANGES, ODD_VALUES, places, seal
from tests.image_bytes import noise
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.bundle import hash_file
from vlm_edge.errors import BadInput, DamagedBundle, VlmEdgeError
from vlm_edge.pipeline.embedded import NANO

MANIFESTS, CONTENTS = 200, 60
MEMORY = "1GiB"
"""A budget, so that no mutated context makes the test itself allocate gigabytes."""
IMAGE = noise(120, 150)
Json = Any


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(NANO, tmp_path / "nano"))


def reseal(root: Path, change: Callable[[Json], object] = lambda _: None) -> Path:
    """Make every size and hash fit what the folder holds now, after `change` has been made to the manifest."""
    path = root / "manifest.json"
    plain = json.loads(path.read_text())
    change(plain)
    for artifact in plain["artifacts"]:
        file = root / artifact["path"]
        artifact.update(bytes=file.stat().st_size, sha256=hash_file(file))
    path.write_bytes(seal(json.dumps(plain).encode()))
    return root


def rewrite(root: Path, name: str, change: Callable[[Json], Json]) -> Path:
    path = root / name
    plain = json.loads(path.read_text())
    path.write_text(json.dumps(change(plain) or plain))
    return reseal(root)


def ask(root: Path) -> str:
    pipeline = Pipeline.load(root, device="cpu", threads=1, budget=MEMORY)
    return pipeline.ask(IMAGE, "what is the total?", AskOptions(max_new_tokens=2)).text


def refused(root: Path, why: str) -> DamagedBundle:
    with pytest.raises(DamagedBundle, match=why) as caught:
        ask(root)
    assert caught.value.remedy
    assert "\n" not in caught.value.message
    return caught.value


def test_the_copy_answers(bundle: Path) -> None:
    assert ask(reseal(bundle))


@pytest.mark.parametrize("name", ["tokenizer_config", "config", "generation_config", "preprocessor_config"])
@pytest.mark.parametrize("content", ["[]", "null", "7", '"x"', "{", ""])
def test_a_configuration_that_is_no_object(bundle: Path, name: str, content: str) -> None:
    (bundle / f"{name}.json").write_text(content)
    refused(reseal(bundle), name)


def test_a_chat_template_that_is_no_text(bundle: Path) -> None:
    (bundle / "chat_template.jinja").write_bytes(b"\xff\xfe{{ x }}")
    refused(reseal(bundle), "chat_template")


@pytest.mark.parametrize("std", [0, [0.5, 0.5, 0.0], [1e-30] * 3, [float("nan")] * 3, [1e400] * 3, 10**400, "ab", [1]])
@pytest.mark.parametrize("name", ["image_std", "image_mean"])
def test_pixels_that_cannot_be_normalised(bundle: Path, name: str, std: Json) -> None:
    if name == "image_mean" and std in (0, [0.5, 0.5, 0.0], [1e-30] * 3):
        std = [1e30] * 3
    refused(rewrite(bundle, "preprocessor_config.json", lambda plain: plain.update({name: std})), name)


@pytest.mark.parametrize("index", [-1, 384, 1 << 70, 1e308, float("inf"), None, "x", [4]])
def test_a_placeholder_that_the_tokenizer_does_not_have(bundle: Path, index: Json) -> None:
    refused(rewrite(bundle, "config.json", lambda plain: plain.update(image_token_index=index)), "image_token_index")


@pytest.mark.parametrize(("field", "value"), [("view_px", 224), ("grid", [4, 16]), ("separator_tokens", 0)])
def test_views_that_are_not_those_of_the_configuration(bundle: Path, field: str, value: Json) -> None:
    refused(reseal(bundle, lambda plain: plain["model"]["geometry"].update({field: value})), field)


@pytest.mark.parametrize(
    ("field", "value"),
    [("head_dim", 32), ("kv_heads", 2), ("layers", 3), ("vocab", 256), ("hidden", 128), ("heads", 8)],
)
def test_a_decoder_that_is_not_the_configured_one(bundle: Path, field: str, value: int) -> None:
    def change(plain: Json) -> None:
        plain["model"]["text"][field] = value
        plain["model"]["projector"]["output"] = plain["model"]["text"]["hidden"]

    refused(reseal(bundle, change), field)


@pytest.mark.parametrize("view", [56, 224])
def test_a_graph_for_views_of_another_size(bundle: Path, view: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Manifest and configuration files agree with each other, but not with the graph."""
    side = view // 14

    def change(plain: Json) -> None:
        plain["model"]["geometry"].update(view_px=view, grid=[side, side])

    path = bundle / "config.json"
    plain = json.loads(path.read_text())
    plain["vision_config"]["image_size"] = view
    path.write_text(json.dumps(plain))
    path = bundle / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"size": {"height": view, "width": view}}))
    refused(reseal(bundle, change), "vision/cpu/model.onnx")
    assert capfd.readouterr().err == ""  # ONNX Runtime would log what is raised


@pytest.mark.parametrize("width", [128, 512])
def test_an_embedding_table_of_another_width(bundle: Path, width: int) -> None:
    from safetensors.numpy import save_file

    save_file({"embed": np.zeros((384, width), np.float16)}, bundle / "llm/embed.safetensors")
    refused(reseal(bundle), "embedding table")


def test_an_embedding_table_with_too_few_rows(bundle: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"embed": np.zeros((300, 256), np.float16)}, bundle / "llm/embed.safetensors")
    refused(reseal(bundle), "embedding table")


def test_decoder_and_encoder_swapped(bundle: Path) -> None:
    def swap(plain: Json) -> None:
        roles = {"vision.graph": "llm.graph", "llm.graph": "vision.graph"}
        for artifact in plain["artifacts"]:
            artifact["role"] = roles.get(artifact["role"], artifact["role"])

    refused(reseal(bundle, swap), "is not a decoder that takes inputs_embeds")


def test_a_tokenizer_that_fails_on_a_question(bundle: Path) -> None:
    """A word-level model without an unknown token can be loaded, but knows nothing of what is asked."""
    tokenizer = {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "none"}}
    added = json.loads((bundle / "tokenizer.json").read_text())["added_tokens"]
    (bundle / "tokenizer.json").write_text(json.dumps({**tokenizer, "added_tokens": added}))
    refused(reseal(bundle), "tokenizer")


def test_a_folder_whose_name_is_no_text(bundle: Path) -> None:
    expected = ask(bundle)
    odd = bundle.parent / os.fsdecode(b"b\xff")
    bundle.rename(odd)
    assert ask(odd) == expected


def test_a_question_that_no_context_could_hold_is_the_askers_fault() -> None:
    pipeline = Pipeline.load()
    for length in (64 * 768 + 1, 3 << 20):
        with pytest.raises(BadInput, match="question"):
            pipeline.ask(IMAGE, "x" * length)
    for no_text in (None, 7, b"what is the total?"):
        with pytest.raises(BadInput, match="question"):
            pipeline.ask(IMAGE, no_text)  # type: ignore[arg-type]


def outcome(root: Path) -> VlmEdgeError | str:
    try:
        return ask(root)
    except VlmEdgeError as error:
        return error


def is_answer(result: VlmEdgeError | str) -> bool:
    """Whether the model answered; an error is held to its form."""
    if isinstance(result, VlmEdgeError):
        assert result.remedy
        assert len(result.message) < 2000
        return False
    return True


def test_no_sealed_manifest_ends_in_anything_but_an_answer_or_an_error_of_ours(bundle: Path) -> None:
    """Only what the manifest says of model, limits, defaults and recipe: the rest is core/test_bundle_fuzz.py's."""
    path = bundle / "manifest.json"
    original = json.loads(path.read_text())
    rng = random.Random(7)
    answers = 0
    for _ in range(MANIFESTS):
        plain = json.loads(json.dumps(original))
        part = rng.choice(("model", "model", "limits", "defaults", "recipe"))
        container, key = rng.choice(list(places(plain[part])))
        if isinstance(container[key], int) and rng.random() < 0.6:
            container[key] = int(container[key]) + rng.choice((-1, 1, -int(container[key]), 7, 1 << 10, 1 << 33))
        else:
            container[key] = rng.choice(ODD_VALUES)
        path.write_bytes(seal(json.dumps(plain).encode()))
        answers += is_answer(outcome(bundle))
    assert 0 < answers < MANIFESTS / 2


def test_no_sealed_content_ends_in_anything_but_an_answer_or_an_error_of_ours(bundle: Path) -> None:
    names = (
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "tokenizer_config.json",
        "tokenizer.json",
    )
    originals = {name: (bundle / name).read_bytes() for name in names}
    rng = random.Random(8)
    answers = 0
    for _ in range(CONTENTS):
        name = rng.choice(names)
        (bundle / name).write_bytes(rng.choice(JSON_CHANGES)(originals[name], rng))
        answers += is_answer(outcome(reseal(bundle)))
        (bundle / name).write_bytes(originals[name])
    assert 0 < answers < CONTENTS
