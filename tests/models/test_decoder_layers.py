"""Decoder layers one at a time against the whole model in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests import quantizable
from tests.quant import text_models
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.errors import BadInput
from vlm_edge.models.decoder_layers import StreamedDecoder, pieces
from vlm_edge.models.qwen_prompt import rope_positions
from vlm_edge.models.weights import read
from vlm_edge.quant.sequences import Placement

LENGTH = 30


def through(decoder: StreamedDecoder, rows: torch.Tensor, placement: Placement) -> torch.Tensor:
    hidden = rows[None]
    with torch.no_grad():
        for index in range(decoder.count):
            output = decoder.layer(index)(hidden, **decoder.arguments(index, placement))
            hidden = output[0] if isinstance(output, tuple) else output
    return decoder.logits(hidden[0])


@pytest.mark.parametrize("kind", text_models.CLASSES)
def test_layer_by_layer_is_the_whole_model(kind: str, tmp_path: Path) -> None:
    model = quantizable.save_text(tmp_path, kind)
    decoder = StreamedDecoder(open_checkpoint(tmp_path))
    ids = text_models.tokens(1, LENGTH)
    with torch.no_grad():
        expected = model(input_ids=ids).logits[0]
    assert torch.equal(through(decoder, decoder.embed(ids[0].tolist()), Placement(LENGTH)), expected)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_three_part_positions(family: str, tmp_path: Path) -> None:
    model = quantizable.save_vlm(family, tmp_path)
    decoder = StreamedDecoder(open_checkpoint(tmp_path))
    image = ImageLayout((42, 28), (0, 0, 42, 28), views=1, visual_tokens=6, token_grid=(2, 3))
    positions = torch.from_numpy(rope_positions([(1, None), (6, image), (LENGTH - 7, None)]))
    rows = torch.randn(LENGTH, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(inputs_embeds=rows[None], position_ids=positions[:, None]).logits[0]
        plain = model(inputs_embeds=rows[None]).logits[0]
    found = through(decoder, rows, Placement(LENGTH, positions))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, plain, atol=1e-2)


def test_a_prefix_that_sees_itself_in_both_directions(tmp_path: Path) -> None:
    model = quantizable.save_vlm("paligemma", tmp_path)
    decoder = StreamedDecoder(open_checkpoint(tmp_path))
    rows = torch.randn(LENGTH, 64, generator=torch.Generator().manual_seed(0))
    kinds = torch.zeros(1, LENGTH, dtype=torch.int64)
    kinds[0, 12:] = 1
    with torch.no_grad():
        expected = model(inputs_embeds=rows[None], token_type_ids=kinds).logits[0]
    found = through(decoder, rows, Placement(LENGTH, prefix=12))
    # Its positions count from 1, ours from 0: rotations by the same differences, rounded differently.
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_only_one_layer_has_weights(tmp_path: Path) -> None:
    quantizable.save_text(tmp_path)
    decoder = StreamedDecoder(open_checkpoint(tmp_path))
    first = decoder.layer(0)
    decoder.layer(1)
    assert all(parameter.is_meta for parameter in first.parameters())
    again = decoder.layer(0)
    assert not any(parameter.is_meta for parameter in again.parameters())


def test_tokens_beyond_the_table_are_refused(tmp_path: Path) -> None:
    quantizable.save_text(tmp_path)
    decoder = StreamedDecoder(open_checkpoint(tmp_path))
    with pytest.raises(BadInput, match="token 96 is beyond the embedding table's 96 rows"):
        decoder.embed([3, 96])


def test_pieces_are_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizable.save_text(tmp_path)
    table = StreamedDecoder(open_checkpoint(tmp_path)).embedding
    monkeypatch.setattr("vlm_edge.models.weights.PIECE_BYTES", 4 * 64 * 7)
    parts = list(pieces(table))
    assert len(parts) == 14
    assert torch.equal(torch.cat(parts), read(table, torch.float32))


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    model = text_models.text_model("llama")
    model.config.quantization_config = {"quant_method": "awq"}
    model.save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="already quantized"):
        StreamedDecoder(open_checkpoint(tmp_path))
