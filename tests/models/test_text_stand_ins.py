"""Decoders that exist inside a vision-language class only, in a whole model with the least tower."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file  # noqa: E402

from tests.models.tiny_checkpoints import build  # noqa: E402
from vlm_edge.core import shards  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.errors import BadInput  # noqa: E402
from vlm_edge.models.text_stand_ins import stand_in  # noqa: E402
from vlm_edge.models.text_weights import extract_text_model  # noqa: E402

FAMILIES = ("qwen2_vl", "qwen2_5_vl")


def positions(length: int) -> Any:
    return torch.randint(0, 30, (3, 1, length), generator=torch.Generator().manual_seed(5))


@pytest.fixture(params=[(family, tied) for family in FAMILIES for tied in (False, True)], ids=str)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    family, tied = request.param
    found = build(family, tied=tied)
    found.save_pretrained(tmp_path / "model", max_shard_size="40KB")
    return found


def test_the_decoder_within_a_stand_in_says_the_same(model: Any, tmp_path: Path) -> None:
    extract_text_model(open_checkpoint(tmp_path / "model"), tmp_path / "text")
    whole = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "text", dtype=torch.float32)
    embeds = torch.randn(1, 9, 48, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        given = {"inputs_embeds": embeds, "position_ids": positions(9)}
        assert torch.equal(whole.eval()(**given).logits, model(**given).logits)
    stored = load_file(tmp_path / "text/model.safetensors")
    assert all(name.startswith(("model.language_model.", "lm_head.")) for name in stored)
    tower = sum(parameter.numel() for parameter in whole.model.visual.parameters())
    assert tower < 20_000  # whatever the model's own: 2 x 3 x 14 x 14 pixels times eight, and little else


def test_the_towers_bytes_are_not_read(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    original = shards._chunks
    monkeypatch.setattr(shards, "_chunks", lambda tensor: (names.append(tensor.name), original(tensor))[1])
    extract_text_model(open_checkpoint(tmp_path / "model"), tmp_path / "text")
    assert len(names) > len(list(model.model.language_model.parameters())) - 1
    assert [name for name in names if "visual" in name] == []


def test_a_published_configs_layout(tmp_path: Path) -> None:
    """The decoder's fields at the root, and `rope_scaling` with its old name."""
    model = build("qwen2_5_vl")
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    old = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    kept = {name: value for name, value in text.items() if name not in ("model_type", "layer_types", "dtype")}
    config |= kept | {"rope_scaling": old, "rope_theta": rope["rope_theta"]}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    extract_text_model(open_checkpoint(tmp_path / "model"), tmp_path / "text")
    written = json.loads((tmp_path / "text/config.json").read_text())["text_config"]
    assert written["rope_parameters"]["mrope_section"] == rope["mrope_section"]
    assert written["rope_parameters"]["rope_type"] == "default"
    assert written["rope_parameters"]["rope_theta"] == rope["rope_theta"]
    assert written["hidden_size"] == 48


def test_a_text_model_that_nothing_stands_in_for() -> None:
    config = transformers.Qwen2_5_VLConfig().text_config
    config.model_type = "other_text"
    with pytest.raises(BadInput, match="does not exist apart") as caught:
        stand_in(config, "somewhere")
    assert "vision,projector" in caught.value.remedy
