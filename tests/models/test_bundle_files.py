"""A bundle's files: the prompt of a bundle without a template, and where an answer's end is looked up."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core.bundle import Bundle, open_bundle, reference, write_manifest
from vlm_edge.errors import DamagedBundle
from vlm_edge.models import bundle_files
from vlm_edge.models.llava.prompt import DEFAULT_TEMPLATE, LlavaPrompt
from vlm_edge.pipeline.embedded import NANO

LAYOUT = open_bundle(NANO).manifest.model.geometry.layout((300, 200))
ASKED = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is the total?"}]}]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The embedded bundle, less its chat template."""
    root = Path(shutil.copytree(NANO, tmp_path / "nano"))
    (root / "chat_template.jinja").unlink()
    manifest = open_bundle(NANO).manifest
    kept = tuple(artifact for artifact in manifest.artifacts if artifact.role != "chat_template")
    return write_manifest(root, replace(manifest, artifacts=kept))


def test_without_a_template_the_prompt_is_that_of_llava(bundle: Bundle) -> None:
    """As the model card of LLaVA-1.5 writes it, behind the token that a Llama tokenizer begins every text with."""
    assert (
        bundle_files.template(bundle, DEFAULT_TEMPLATE).render(ASKED)
        == "<s>USER: <image>\nwhat is the total? ASSISTANT:"
    )


def test_a_tokenizer_without_a_first_token_adds_none(bundle: Bundle) -> None:
    (bundle.root / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))
    assert (
        bundle_files.template(bundle, DEFAULT_TEMPLATE).render(ASKED) == "USER: <image>\nwhat is the total? ASSISTANT:"
    )


@pytest.mark.parametrize("images", [0, 1, 3])
def test_every_image_has_its_place_in_it(bundle: Bundle, images: int) -> None:
    prompt = LlavaPrompt(open_bundle(bundle.root))
    tokens = prompt.tokens("what is the total?", [LAYOUT] * images)
    assert tokens.count(prompt.image_id) == images
    from tokenizers import Tokenizer

    text = "<s>USER: " + "<image>\n" * images + "what is the total? ASSISTANT:"
    assert list(tokens) == Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def test_a_template_that_is_named_but_gone_is_no_missing_one(bundle: Bundle) -> None:
    (bundle.root / "chat_template.jinja").write_text("x")
    entry = reference(bundle.root, "chat_template.jinja", role="chat_template")
    named = write_manifest(bundle.root, replace(bundle.manifest, artifacts=(*bundle.manifest.artifacts, entry)))
    (bundle.root / "chat_template.jinja").unlink()
    with pytest.raises(DamagedBundle, match="chat_template"):
        bundle_files.template(named, DEFAULT_TEMPLATE)


def test_the_tokenizers_own_template_comes_before_the_familys(bundle: Bundle) -> None:
    (bundle.root / "tokenizer_config.json").write_text(json.dumps({"chat_template": "own {{ messages[0].role }}"}))
    assert bundle_files.template(bundle, DEFAULT_TEMPLATE).render(ASKED) == "own user"


@pytest.mark.parametrize(
    ("config", "expected"),
    [({"eos_token_id": 3}, {3}), ({"text_config": {"eos_token_id": [4, 5]}}, {4, 5}), ({}, None)],
)
def test_without_a_generation_file_the_configuration_names_the_end(
    bundle: Bundle, config: dict[str, Any], expected: set[int] | None
) -> None:
    kept = tuple(artifact for artifact in bundle.manifest.artifacts if artifact.role != "generation_config")
    without = write_manifest(bundle.root, replace(bundle.manifest, artifacts=kept))
    if expected is None:
        with pytest.raises(DamagedBundle, match=r"config\.json has no eos_token_id"):
            bundle_files.end_ids(without, config)
    else:
        assert bundle_files.end_ids(without, config) == expected
    assert bundle_files.end_ids(bundle, config) == {2}


def test_older_files_name_the_placeholder_by_another_key(bundle: Bundle) -> None:
    tokenizer = bundle_files.tokenizer(bundle)
    names = "image_token_id", "image_token_index"
    assert bundle_files.image_id({"image_token_index": 4}, tokenizer, *names) == 4
    assert bundle_files.image_id({"image_token_index": 4, "image_token_id": 5}, tokenizer, *names) == 5
    with pytest.raises(DamagedBundle, match="image_token_id"):
        bundle_files.image_id({}, tokenizer, *names)
