"""Parts by tensor names, on tiny checkpoints that transformers wrote, and AutoAWQ's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.models.tiny_checkpoints import FAMILIES, TEXT, build, rename, save_state
from vlm_edge.core import discover
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.core.shards import TensorRef
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput
from vlm_edge.models.decoders import text_spec
from vlm_edge.models.fields import Fields
from vlm_edge.models.tensor_parts import part_of, stored_decoder


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.language_model.layers.0.self_attn.q_proj.weight", "decoder"),
        ("language_model.model.layers.0.mlp.up_proj.qweight", "decoder"),
        ("model.language_model.embed_tokens.weight", "embedding"),
        ("lm_head.weight", "lm_head"),
        ("language_model.lm_head.weight", "lm_head"),
        ("vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight", "vision"),
        ("model.visual.blocks.0.attn.qkv.weight", "vision"),
        ("model.vision_model.embeddings.patch_embedding.weight", "vision"),
        ("model.multi_modal_projector.linear_1.weight", "projector"),
        ("model.connector.modality_projection.proj.weight", "projector"),
        ("model.image_newline", "projector"),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", ""),
        ("vision_tower.vision_model.embeddings.position_ids", ""),
    ],
)
def test_parts_by_name(name: str, part: str) -> None:
    assert part_of(name) == part


@pytest.fixture(scope="module")
def spec() -> TextSpec:
    config = TEXT | {"max_position_embeddings": 64, "tie_word_embeddings": False}
    return text_spec(Fields(config), "llama", tied=False)


def ref(name: str, dtype: str, *shape: int) -> TensorRef:
    size = {"I32": 4, "F16": 2}[dtype]
    for side in shape:
        size *= side
    return TensorRef(name, dtype, shape, Path("x"), 0, size)


def packed(spec: TextSpec, group: int = 16) -> list[TensorRef]:
    """A decoder in AutoAWQ's GEMM layout."""
    hidden, inner, kv = spec.hidden, spec.intermediate, spec.kv_heads * spec.head_dim
    shapes = {
        "q_proj": (hidden, hidden), "k_proj": (hidden, kv), "v_proj": (hidden, kv), "o_proj": (hidden, hidden),
        "gate_proj": (hidden, inner), "up_proj": (hidden, inner), "down_proj": (inner, hidden),
    }  # fmt: skip
    found = [
        ref("model.embed_tokens.weight", "F16", spec.vocab, hidden),
        ref("lm_head.weight", "F16", spec.vocab, hidden),
    ]
    found.append(ref("model.norm.weight", "F16", hidden))
    for layer in range(spec.layers):
        at = f"model.layers.{layer}"
        found += [ref(f"{at}.{name}_layernorm.weight", "F16", hidden) for name in ("input", "post_attention")]
        for name, (rows, cols) in shapes.items():
            found += [
                ref(f"{at}.{name}.qweight", "I32", rows, cols // 8),
                ref(f"{at}.{name}.qzeros", "I32", rows // group, cols // 8),
                ref(f"{at}.{name}.scales", "F16", rows // group, cols),
            ]
    return found


def test_packed_decoders_count_as_they_are_stored(spec: TextSpec) -> None:
    tensors = packed(spec)
    stored = stored_decoder(tensors, spec)
    assert sum(stored.values()) == sum(tensor.bytes for tensor in tensors)
    assert stored["llm.embedding"] == stored["llm.lm_head"] == 2 * spec.vocab * spec.hidden


def test_contradictory_files_are_told(spec: TextSpec) -> None:
    with pytest.raises(BadInput, match="the files hold"):
        stored_decoder(packed(spec)[:-3], spec)
    with pytest.raises(BadInput, match="the files hold"):
        stored_decoder(packed(replace(spec, layers=3)), spec)


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("old_names", [False, True], ids=["new names", "old names"])
def test_checkpoints_of_transformers_agree_with_their_config(family: str, old_names: bool, tmp_path: Path) -> None:
    save_state(build(family), tmp_path)
    if old_names:
        rename(tmp_path, FAMILIES[family].old)
    checkpoint = open_checkpoint(tmp_path)
    found = discover.family_of(checkpoint.config).spec(checkpoint.config)
    assert stored_decoder(checkpoint.tensors.values(), found.text) == {}
    with pytest.raises(BadInput, match="describes a decoder"):
        stored_decoder(checkpoint.tensors.values(), replace(found.text, linear_parameters=1))
