"""Records in a manifest: fields that came later leave older manifests, and their hash, as they were."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from importlib import resources

import pytest

from vlm_edge.core.bundle import Manifest
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.load import parse, to_plain
from vlm_edge.core.specs import ModelSpec, ProjectorSpec, TextSpec, VisionSpec
from vlm_edge.errors import BadInput

OLD = ModelSpec(
    family="llava",
    vision=VisionSpec(width=4, layers=1, heads=2, mlp=8, image_px=28, patch_px=14),
    projector=ProjectorSpec(4, 16, 16),
    text=TextSpec(hidden=16, layers=2, heads=4, kv_heads=2, head_dim=4, intermediate=32, vocab=100, max_positions=64),
    geometry=TokenGeometry(view_px=28, grid=(2, 2)),
)
OLD_FIELDS = {
    "vision": ["width", "layers", "heads", "mlp", "image_px", "patch_px"],
    "projector": ["input", "hidden", "output"],
    "text": [
        "hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "max_positions", "tied_embeddings",
    ],
}  # fmt: skip
NEW = replace(
    OLD,
    vision=replace(OLD.vision, window_px=28, full_attention_layers=(0, 3), prefix_tokens=0, parameters=1000),
    projector=replace(OLD.projector, kind="linear", merge=2, parameters=200),
    text=replace(
        OLD.text, architecture="qwen2", embedding_parameters=1, lm_head_parameters=20, linear_parameters=300,
        other_parameters=4000, sliding_layers=(1,), mrope_sections=(1, 1), qk_norm=True,
    ),
)  # fmt: skip


def test_a_record_without_new_facts_looks_as_it_did() -> None:
    plain = to_plain(OLD)
    assert {part: list(plain[part]) for part in OLD_FIELDS} == OLD_FIELDS


@pytest.mark.parametrize("spec", [OLD, NEW], ids=["old", "new"])
def test_records_survive_a_file(spec: ModelSpec) -> None:
    assert parse(json.loads(json.dumps(to_plain(spec))), ModelSpec, "manifest.json") == spec


def test_new_facts_are_written_and_hashed() -> None:
    manifest = parse(
        json.loads(resources.files("vlm_edge").joinpath("nano/manifest.json").read_text("utf-8")), Manifest, "nano"
    )
    assert manifest.digest() == manifest.self_sha256
    told = replace(manifest, model=NEW)
    assert to_plain(told)["model"]["text"]["mrope_sections"] == [1, 1]
    for change in (
        replace(NEW, vision=replace(NEW.vision, parameters=1001)),
        replace(NEW, text=replace(NEW.text, sliding_layers=())),
        replace(NEW, projector=replace(NEW.projector, merge=1)),
    ):
        assert replace(manifest, model=change).digest() != told.digest()


def test_unknown_keys_are_still_refused() -> None:
    plain = to_plain(OLD)
    plain["vision"]["parametres"] = 3
    with pytest.raises(BadInput, match=r"vision\.parametres") as caught:
        parse(plain, ModelSpec, "manifest.json")
    assert "'parameters'" in caught.value.remedy


def test_sums() -> None:
    assert NEW.text.parameters == 4321
    assert NEW.parameters == 1000 + 200 + 4321


def test_every_later_field_has_a_default() -> None:
    for kind in (VisionSpec, ProjectorSpec, TextSpec):
        later = [field for field in dataclasses.fields(kind) if field.metadata.get("omit_default")]
        assert later
        assert all(field.default is not dataclasses.MISSING for field in later)
