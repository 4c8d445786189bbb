"""Calibration prompts against what transformers' own processor and model make of the same image and question."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import runnable
from tests.runnable import QUESTIONS, Runnable
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.exporting.source import Source, describe
from vlm_edge.pipeline.quantizing.calibration_set import FamilyPrompt, SkippedSample, Tower
from vlm_edge.quant.calibrate import Sample


@pytest.fixture(scope="module", params=tuple(runnable.SPECIAL))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Runnable, Source, Path]:
    """A family's tiny model, its checkpoint, and a page."""
    folder = tmp_path_factory.mktemp(request.param)
    found = runnable.make(request.param, folder)
    page = folder / "page.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 71, 3), np.uint8)).save(page)
    return found, describe(folder / "checkpoint"), page


def prompt_of(source: Source, stage: Path) -> FamilyPrompt:
    stage.mkdir()
    return FamilyPrompt(source, stage)


@pytest.mark.parametrize("with_image", [True, False])
def test_a_sequence_is_what_transformers_decoder_reads(
    made: tuple[Runnable, Source, Path], with_image: bool, tmp_path: Path
) -> None:
    found, source, page = made
    if found.family == "paligemma" and not with_image:
        pytest.skip("its processor takes no question without an image")
    prompt, tower = prompt_of(source, tmp_path / "stage"), Tower(source, "cpu")
    image = tower.prepare(page) if with_image else None
    sample = Sample(QUESTIONS[0], page if with_image else None, "it is 7", "here")
    sequence = prompt.sequence(sample, image, tower.features(image) if image else [])
    inputs = found.inputs(QUESTIONS[0], [np.asarray(Image.open(page))] if with_image else [])
    answer = runnable.tokenizer(found.family).encode("it is 7", add_special_tokens=False).ids
    rows, positions = seen_by_decoder(found, inputs)
    expected = torch.cat([rows, found.model.get_input_embeddings()(torch.tensor(answer)).detach()])
    place = sequence.placement
    assert place.length == len(rows) + len(answer)
    torch.testing.assert_close(sequence.hidden, expected, rtol=1e-4, atol=1e-5)
    assert place.prefix == (len(rows) if found.family == "paligemma" else 0)
    visual = (inputs["input_ids"][0] == found.model.config.image_token_id).nonzero()
    assert place.judged_from == (len(rows) - (inputs["input_ids"].shape[1] - int(visual.max())) if with_image else 0)
    assert (place.positions is not None) == found.family.startswith("qwen")
    if place.positions is not None:
        assert torch.equal(place.positions[:, : len(rows)], positions)
        after = positions.max() + 1 + torch.arange(len(answer))
        assert torch.equal(place.positions[:, len(rows) :], after.expand(3, -1))


def seen_by_decoder(found: Runnable, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Input embeddings [L, D] of transformers' text model, and positions [3, L]: those that it is given, or 0, 1, 2 ..."""
    seen: dict[str, torch.Tensor] = {}
    hook = found.model.get_decoder().register_forward_pre_hook(
        lambda _module, _args, named: seen.update(named), with_kwargs=True
    )
    with torch.no_grad():
        found.model(**{name: value for name, value in inputs.items() if name != "labels"})
    hook.remove()
    rows, positions = seen["inputs_embeds"][0], seen.get("position_ids")
    counted = torch.arange(len(rows)).expand(3, -1)
    return rows, counted if positions is None or positions.ndim == 2 else positions[-3:, 0]


def test_a_question_with_a_control_token_is_skipped(made: tuple[Runnable, Source, Path], tmp_path: Path) -> None:
    prompt = prompt_of(made[1], tmp_path / "stage")
    with pytest.raises(SkippedSample, match="no_question"):
        prompt.sequence(Sample(f"what {runnable.SPECIAL[made[0].family][0]}", None, "", "here"), None, [])


def test_a_checkpoint_without_its_tokenizer_is_refused(made: tuple[Runnable, Source, Path], tmp_path: Path) -> None:
    source = made[1]
    kept = source.checkpoint.root / "tokenizer_config.json"
    content = kept.read_bytes()
    kept.unlink()
    try:
        with pytest.raises(BadInput, match="no prompts can be made for") as refused:
            prompt_of(source, tmp_path / "stage")
    finally:
        kept.write_bytes(content)
    assert refused.value.remedy == "download all of the checkpoint"
