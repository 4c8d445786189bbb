"""InternVL's prompt: one run between its markers, however many tiles there are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests import runnable
from vlm_edge.errors import DamagedBundle
from vlm_edge.models.internvl.prompt import InternvlPrompt


def test_an_image_is_one_run_between_markers(tmp_path: Path) -> None:
    prompt = InternvlPrompt(runnable.make("internvl", tmp_path).bundle)
    layout = prompt.views.geometry.layout((112, 28))
    tokens = prompt.tokens("what?", [layout])
    at = tokens.index(prompt.image_id)
    around = [prompt.tokenizer.id_to_token(token) for token in tokens[at - 1 : at + 2]]
    assert around == ["<img>", "<IMG_CONTEXT>", "</img>"]
    features = [np.full((4, 60), float(view), np.float32) for view in range(layout.views)]
    (run,) = prompt.runs(features, layout)
    np.testing.assert_array_equal(run, np.repeat(np.arange(5, dtype=np.float32), 4)[:, None] * np.ones(60, np.float32))


@pytest.mark.parametrize("template", ["no image at all", "<IMG_CONTEXT><IMG_CONTEXT>"])
def test_a_template_that_misplaces_images_is_the_bundles_fault(template: str, tmp_path: Path) -> None:
    made = runnable.make("internvl", tmp_path)
    path = made.bundle.root / "tokenizer_config.json"
    path.write_text(path.read_text().replace("{", f'{{"chat_template": "{template}",', 1))
    prompt = InternvlPrompt(made.bundle)
    with pytest.raises(DamagedBundle, match="does not place every image once"):
        prompt.tokens("what?", [prompt.views.geometry.layout((28, 28))])
