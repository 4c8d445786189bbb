"""Idefics2's markers where views, images and words follow each other."""

from __future__ import annotations

import pytest

from tests import runnable
from vlm_edge.models.idefics2.prompt import Idefics2Prompt

A, I = "<fake_token_around_image>", "<image>"  # noqa: E741 - the placeholder


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Idefics2Prompt:
    return Idefics2Prompt(runnable.make("idefics2", tmp_path_factory.mktemp("idefics2")).bundle)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"User:{A}{I}{A}what?", f"User:{A}{I}{A} what?"),
        (f"User:{A}{I}{A} what?", f"User:{A}{I}{A} what?"),
        (f"{A}{I}{A}{A}{I}{A}\nwhat?", f"{A}{I}{A}{I}{A}\nwhat?"),
        (f"{A}{I}{A}<end_of_utterance>", f"{A}{I}{A}<end_of_utterance>"),
        (f"{A}{I}{A}", f"{A}{I}{A}"),
    ],
)
def test_neighbours_share_a_marker_and_words_stand_apart(prompt: Idefics2Prompt, text: str, expected: str) -> None:
    assert prompt.finished(text) == expected


def test_the_plan_counts_a_marker_more_for_each_image_that_touches_another(prompt: Idefics2Prompt) -> None:
    """An upper bound: whether images touch is the template's choice."""
    layout = prompt.views.geometry.layout((90, 61))
    marker = prompt.tokenizer.token_to_id(A)
    for images in (1, 2, 3):
        tokens = prompt.tokens("what?", [layout] * images)
        assert tokens.count(marker) == images * layout.marker_tokens - (images - 1)
