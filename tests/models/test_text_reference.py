"""Logits computed with one layer in memory, against the whole model at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests import tiny_decoders  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.errors import BadInput  # noqa: E402
from vlm_edge.models import weights  # noqa: E402
from vlm_edge.models.text_reference import embedding_scale, reference_logits  # noqa: E402

PROMPT, LENGTH = 8, 12
CASES = [
    ("llava", {"kind": "llama"}),
    ("llava", {"kind": "qwen3", "tied": True}),
    ("llava_next", {"kind": "mistral"}),
    ("internvl", {}),
    ("idefics2", {}),
    ("idefics3", {}),
    ("paligemma", {"kind": "gemma", "tied": True}),
    ("paligemma", {"kind": "gemma2"}),
    ("qwen2_vl", {"tied": True}),
    ("qwen2_5_vl", {}),
]


def whole_logits(model: Any, embeds: Any, family: str, positions: Any) -> Any:
    options: dict[str, Any] = {}
    if positions is not None:
        options["position_ids"] = torch.from_numpy(np.ascontiguousarray(positions.transpose(1, 0, 2)))
    if family == "paligemma":
        options["token_type_ids"] = torch.ones(embeds.shape[:2], dtype=torch.long)
        options["token_type_ids"][:, :PROMPT] = 0
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return model(inputs_embeds=embeds, **options).logits[:, PROMPT - 1 :].numpy()


@pytest.mark.parametrize(("family", "options"), CASES, ids=str)
def test_one_layer_at_a_time_is_the_model(
    family: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_decoders.save(family, tmp_path, **options)
    hidden = model.config.text_config.hidden_size
    monkeypatch.setattr(weights, "PIECE_BYTES", 4 * hidden * 40)  # of the head's 99 rows
    embeds = torch.cat([tiny_decoders.embeddings(LENGTH, hidden, seed) for seed in (1, 2)])
    positions = np.random.default_rng(0).integers(0, 40, (2, 3, LENGTH)) if "qwen" in family else None
    logits = reference_logits(
        open_checkpoint(tmp_path), embeds.numpy(), prompt=PROMPT, positions=positions,
        bidirectional_prefix=family == "paligemma",
    )  # fmt: skip
    assert logits.shape == (2, LENGTH - PROMPT + 1, 99)
    np.testing.assert_allclose(logits, whole_logits(model, embeds, family, positions), rtol=1e-4, atol=5e-5)


@pytest.mark.parametrize(("family", "kind"), [("llava", "llama"), ("paligemma", "gemma2")])
def test_layers_are_told_as_they_are(family: str, kind: str, tmp_path: Path) -> None:
    model = tiny_decoders.save(family, tmp_path, kind)
    embeds = tiny_decoders.embeddings(LENGTH, model.config.text_config.hidden_size)
    told: dict[int, Any] = {}
    reference_logits(
        open_checkpoint(tmp_path), embeds.numpy(), prompt=PROMPT, bidirectional_prefix=family == "paligemma",
        on_layer=lambda index, hidden: told.update({index: hidden.copy()}),
    )  # fmt: skip
    model.set_attn_implementation("eager")
    kinds = {"token_type_ids": (torch.arange(LENGTH) >= PROMPT).long()[None]} if family == "paligemma" else {}
    with torch.no_grad():
        states = model(inputs_embeds=embeds, output_hidden_states=True, **kinds).hidden_states
    assert [*told] == [*range(model.config.text_config.num_hidden_layers)]
    # the last state that transformers tells is normed
    for index, state in enumerate(states[1:-1]):
        np.testing.assert_allclose(told[index], state.numpy(), rtol=1e-4, atol=5e-5)


def test_layers_are_dropped_after_their_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_decoders.save("llava", tmp_path, "llama")
    layer = sum(parameter.numel() for parameter in model.model.language_model.layers[0].parameters())
    held: list[int] = []
    names: list[str] = []
    fill, read = weights._fill, weights.read_into

    def filling(whole: Any, *rest: Any) -> None:
        fill(whole, *rest)
        held.append(sum(parameter.numel() for parameter in whole.parameters() if not parameter.is_meta))

    monkeypatch.setattr(weights, "_fill", filling)
    monkeypatch.setattr(weights, "read_into", lambda tensor, into: (names.append(tensor.name), read(tensor, into)))
    reference_logits(open_checkpoint(tmp_path), tiny_decoders.embeddings(9).numpy(), prompt=4)
    assert held == [layer + 60] * 5  # with the norm behind them
    assert [name for name in names if "tower" in name or "projector" in name or "embed_tokens" in name] == []


@pytest.mark.parametrize(("family", "kind", "scale"), [("llava", "llama", 1), ("paligemma", "gemma2", 60**0.5)])
def test_the_scale_of_embeddings(family: str, kind: str, scale: float, tmp_path: Path) -> None:
    model = tiny_decoders.save(family, tmp_path, kind)
    assert embedding_scale(open_checkpoint(tmp_path)) == pytest.approx(scale)
    table = model.get_input_embeddings()
    with torch.no_grad():
        torch.testing.assert_close(table(torch.tensor([5])), table.weight[5:6] * scale)


def test_a_damaged_layer_is_named(tmp_path: Path) -> None:
    tiny_decoders.save("llava", tmp_path, "llama")
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language_model.model.layers.3.mlp.up_proj.weight"] = torch.zeros(4, 4)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"layers\.3\.mlp\.up_proj"):
        reference_logits(open_checkpoint(tmp_path), tiny_decoders.embeddings(9).numpy(), prompt=4)
