"""LLaVA prompts and pixels against transformers' own tokenizer, template and image processor."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models.llava.prompt import LlavaPrompt
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.vision.preprocess import global_view

PAGE = resource_dir("calibration") / "pages/receipt.png"
LAYOUT = open_bundle(NANO).manifest.model.geometry.layout((300, 200))
QUESTIONS = ("what is the total?", "WHERE is  the circle", "what's the zzz 480?", "été?", "a\nb\tc")


@pytest.fixture(scope="module")
def prompt() -> LlavaPrompt:
    return LlavaPrompt(open_bundle(NANO))


@pytest.fixture(scope="module")
def tokenizer():
    transformers = pytest.importorskip("transformers")
    return transformers.PreTrainedTokenizerFast.from_pretrained(NANO)


@pytest.mark.parametrize("question", QUESTIONS)
def test_tokens_equal_the_chat_template_of_transformers(prompt, tokenizer, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert list(prompt.tokens(question, [LAYOUT])) == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_decoding_equals_transformers(prompt, tokenizer):
    for seed in range(20):
        ids = np.random.default_rng(seed).integers(9, 256, 12).tolist()
        expected = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert prompt.text.decode(ids) == expected


def test_pixels_equal_the_image_processor_of_transformers(prompt):
    transformers = pytest.importorskip("transformers")
    settings = json.loads((NANO / "preprocessor_config.json").read_text())
    processor = transformers.CLIPImageProcessorPil(**settings)
    for page in sorted(PAGE.parent.glob("*.png")):
        image = Image.open(page).convert("RGB")
        expected = processor(image, return_tensors="np")["pixel_values"]
        measured = prompt.views.pixels([global_view(np.asarray(image), 112)])
        np.testing.assert_allclose(measured, expected, atol=1e-6)


def test_an_image_becomes_marked_views(prompt):
    rng = np.random.default_rng(0)
    views = [rng.normal(size=(count, 256)).astype(np.float32) for count in (5, 3, 4)]
    tokens = prompt.tokens("what is the total?", [LAYOUT])
    at = tokens.index(prompt.image_id)
    (run,) = prompt.runs(views, LAYOUT)
    embeds = np.concatenate([prompt.text.embed(tokens[:at]), run, prompt.text.embed(tokens[at + 1 :])])
    assert len(embeds) == len(tokens) - 1 + 3 + 12
    table = _embedding_rows()
    ids = {name: prompt.tokenizer.token_to_id(name) for name in ("<global>", "<tile>")}
    expected = [table[list(tokens[:at])], table[[ids["<global>"]]], views[0], table[[ids["<tile>"]]], views[1]]
    expected += [table[[ids["<tile>"]]], views[2], table[list(tokens[at + 1 :])]]
    np.testing.assert_array_equal(embeds, np.concatenate(expected))


def _embedding_rows() -> np.ndarray:
    from safetensors.numpy import load_file

    return load_file(NANO / "llm/embed.safetensors")["embed"].astype(np.float32)


@pytest.mark.parametrize("token", ["<image>", "<answer>", "</s>", "<s>", "<tile>"])
def test_control_tokens_cannot_be_smuggled_in(prompt, token):
    with pytest.raises(BadInput, match="control token"):
        prompt.tokens(f"what is {token} the total?", [LAYOUT])


@pytest.mark.parametrize("question", ["", " ", "\n\t"])
def test_empty_questions(prompt, question):
    with pytest.raises(BadInput, match="empty"):
        prompt.tokens(question, [LAYOUT])


def test_views_of_another_width_than_the_decoder_takes(prompt):
    with pytest.raises(DamagedBundle, match="vectors of 128"):
        prompt.runs([np.zeros((5, 128), np.float32)], LAYOUT)


def test_the_longest_question_is_64_characters_for_each_token_of_context(prompt):
    assert len(prompt.tokens("x" * (64 * 768), [LAYOUT])) > 768
    with pytest.raises(BadInput, match="context of 768"):
        prompt.tokens("x" * (64 * 768 + 1), [LAYOUT])


def test_the_bundle_ships_what_the_checkpoint_says():
    checkpoint = Path(__file__).parents[3] / "recipes/nano/checkpoint"
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config.json", "config.json"):
        assert (NANO / name).read_bytes() == (checkpoint / name).read_bytes()
