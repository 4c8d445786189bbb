"""Idefics3's markers: what the geometry counts is what the tokenizer makes of them, whether or not it joins line breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from tests import runnable
from vlm_edge.models.idefics3.images import marker_texts
from vlm_edge.models.idefics3.prompt import Idefics3Prompt, counted
from vlm_edge.models.preprocessor import ViewSettings


def plain_tokenizer() -> Tokenizer:
    """A byte-level tokenizer without merges and without control tokens: every marker is spelt out."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


@pytest.mark.parametrize("size", [(90, 61), (300, 20), (28, 28), (10, 200)], ids=str)
@pytest.mark.parametrize("made", [runnable.tokenizer("idefics3"), plain_tokenizer()], ids=["merges", "bytes"])
def test_markers_cost_what_the_layout_says(made: Tokenizer, size: tuple[int, int], tmp_path: Path) -> None:
    geometry = runnable.make("idefics3", tmp_path).bundle.manifest.model.geometry
    counted_by = counted(ViewSettings(geometry, 1, None), None, made).geometry  # type: ignore[arg-type]
    layout = counted_by.layout(size)
    # A view's tokens stand between its marker and the next one, so no two markers are tokenized together.
    tokens = sum(len(made.encode(text, add_special_tokens=False).ids) for text in marker_texts(layout))
    assert layout.marker_tokens == tokens


def test_each_view_is_a_run_of_its_own(tmp_path: Path) -> None:
    prompt = Idefics3Prompt(runnable.make("idefics3", tmp_path).bundle)
    layout = prompt.views.geometry.layout((90, 61))
    assert prompt.tokens("what?", [layout, layout]).count(prompt.image_id) == 2 * layout.views == 2 * 7
