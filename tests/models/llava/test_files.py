"""A LLaVA bundle's files: the prompt of a bundle without a template, and pixels' factors."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vlm_edge.core.bundle import Bundle, open_bundle, reference, write_manifest
from vlm_edge.errors import DamagedBundle
from vlm_edge.models.llava import files
from vlm_edge.models.llava.prompt import LlavaPrompt
from vlm_edge.pipeline.run import NANO

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
    assert files.template(bundle).render(ASKED) == "<s>USER: <image>\nwhat is the total? ASSISTANT:"


def test_a_tokenizer_without_a_first_token_adds_none(bundle: Bundle) -> None:
    (bundle.root / "tokenizer_config.json").write_text(json.dumps({"bos_token": None}))
    assert files.template(bundle).render(ASKED) == "USER: <image>\nwhat is the total? ASSISTANT:"


@pytest.mark.parametrize("images", [0, 1, 3])
def test_every_image_has_its_place_in_it(bundle: Bundle, images: int) -> None:
    prompt = LlavaPrompt(open_bundle(bundle.root))
    tokens = prompt.tokens("what is the total?", images=images)
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
        files.template(named)


def test_factors_are_those_of_the_file() -> None:
    mean, std = files.normalisation(open_bundle(NANO))
    settings = json.loads((NANO / "preprocessor_config.json").read_text())
    np.testing.assert_array_equal(mean, np.float32(settings["image_mean"]))
    np.testing.assert_array_equal(std, np.float32(settings["image_std"]))
