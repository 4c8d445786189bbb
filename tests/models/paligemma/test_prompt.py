"""PaliGemma's prompt, which no template shapes, and the scale of its text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests import runnable
from tests.runnable import Runnable
from vlm_edge.errors import BadInput
from vlm_edge.models.paligemma.prompt import PaligemmaPrompt


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runnable:
    return runnable.make("paligemma", tmp_path_factory.mktemp("paligemma"))


def test_text_is_scaled_as_by_the_models_own_embedding_layer(made: Runnable) -> None:
    tokens = [0, 5, 17, 200]
    with torch.no_grad():
        expected = made.model.get_input_embeddings()(torch.tensor(tokens)).numpy()
    np.testing.assert_array_equal(PaligemmaPrompt(made.bundle).text.embed(tokens), expected)


def test_features_are_not_scaled(made: Runnable) -> None:
    prompt = PaligemmaPrompt(made.bundle)
    features = np.random.default_rng(0).normal(size=(16, 60)).astype(np.float32)
    (run,) = prompt.runs([features], prompt.views.geometry.layout((28, 28)))
    np.testing.assert_array_equal(run, features)


def test_a_template_in_the_bundle_is_not_asked(tmp_path: Path) -> None:
    made = runnable.make("paligemma", tmp_path)
    path = made.bundle.root / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", '{"chat_template": "another {{ messages }}",', 1))
    prompt = PaligemmaPrompt(made.bundle)
    layout = prompt.views.geometry.layout((28, 28))
    text = prompt.text.decode(prompt.tokens("what?", [layout]))
    assert text == "what?\n"


@pytest.mark.parametrize("question", ["a <image> b", "a <s> b", " "])
def test_questions_are_held_to_the_same_rules(made: Runnable, question: str) -> None:
    with pytest.raises(BadInput):
        PaligemmaPrompt(made.bundle).tokens(question, [])
