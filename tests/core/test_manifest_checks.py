"""Manifests with a fitting hash whose numbers cannot be: each is refused when the bundle is opened, with the field named."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import reduce
from typing import Any

import pytest

from tests.core.test_bundle_fuzz import seal
from vlm_edge.core.bundle import Bundle, open_bundle, write_manifest
from vlm_edge.core.geometry import (
    AnyResGeometry,
    Geometry,
    PatchGeometry,
    QuarterGeometry,
    SplitGeometry,
    TileGeometry,
)
from vlm_edge.core.manifest_checks import REDUCTIONS, TILINGS, check_manifest
from vlm_edge.errors import DamagedBundle
from vlm_edge.pipeline.embedded import NANO


def changed(bundle: Bundle, **fields: Any) -> Bundle:
    """The bundle on disk with dotted fields (written with __) set and the hash mended."""
    path = bundle.root / "manifest.json"
    plain = json.loads(path.read_text())
    for name, value in fields.items():
        *folders, last = name.split("__")
        reduce(lambda inner, key: inner[key], folders, plain)[last] = value
    path.write_bytes(seal(json.dumps(plain).encode()))
    return bundle


REFUSED: list[tuple[str, Any]] = [
    ("model__vision__joint_views", 0),
    ("model__vision__temporal_patch", 0),
    ("model__vision__window_px", -1),
    ("model__projector__merge", 0),
    ("model__text__sliding_window", -1),
    ("model__text__cross_attention_layers", [-1]),
    ("model__text__kv_heads", 0),
    ("model__text__kv_heads", 3),
    ("model__text__head_dim", -1),
    ("model__text__head_dim", 0),
    ("model__text__hidden", 0),
    ("model__text__layers", 0),
    ("model__text__vocab", 1 << 40),
    ("model__text__max_positions", -5),
    ("model__vision__patch_px", 0),
    ("model__vision__patch_px", 113),
    ("model__vision__image_px", -112),
    ("model__projector__output", 128),
    ("model__projector__hidden", -1),
    ("model__geometry__view_px", 0),
    ("model__geometry__view_px", 8),
    ("model__geometry__view_px", 1 << 20),
    ("model__geometry__grid", [0, 8]),
    ("model__geometry__grid", [8, -8]),
    ("model__geometry__separator_tokens", -1),
    ("limits__max_model_len", -5),
    ("limits__max_model_len", 0),
    ("limits__max_model_len", 1025),
    ("limits__max_tiles", -1),
    ("limits__max_pixels", 0),
    ("limits__max_images", 0),
    ("limits__batch_size", 0),
    ("limits__max_tiles", 10**300),
    ("defaults__tiling", "foo"),
    ("defaults__tiling", ""),
    ("defaults__reduce", "x" * 100_000),
    ("defaults__threshold", 0.0),
    ("defaults__threshold", 1.5),
    ("defaults__threshold", float("nan")),
    ("defaults__keep", -0.5),
    ("defaults__max_new_tokens", -3),
    ("defaults__max_new_tokens", 768),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_number_that_cannot_be_is_refused_and_named(tiny_bundle: Bundle, name: str, value: Any) -> None:
    with pytest.raises(DamagedBundle) as caught:
        open_bundle(changed(tiny_bundle, **{name: value}).root)
    assert name.rpartition("__")[2] in caught.value.message
    assert len(caught.value.message) < 400
    assert caught.value.remedy


@pytest.mark.parametrize(
    "fields",
    [
        {"limits__max_tiles": 0, "limits__max_pixels": 1},
        {"limits__max_model_len": 1024, "defaults__max_new_tokens": 1023},
        {"defaults__threshold": 1.0, "defaults__keep": 1e-9},
        {"model__text__kv_heads": 1},
        {"model__text__kv_heads": 4},
        {"model__projector__hidden": 0},
        {"model__geometry__view_px": 16, "model__geometry__grid": [1, 1], "model__geometry__separator_tokens": 0},
        {"model__vision__patch_px": 112},
        *({"defaults__tiling": name} for name in TILINGS),
        *({"defaults__reduce": name} for name in REDUCTIONS),
    ],
)
def test_the_ends_of_each_range_are_fine(tiny_bundle: Bundle, fields: dict[str, Any]) -> None:
    open_bundle(changed(tiny_bundle, **fields).root)


def test_the_embedded_bundle_passes() -> None:
    check_manifest(open_bundle(NANO).manifest)


def test_the_hash_is_checked_first(tiny_bundle: Bundle) -> None:
    """What was changed by accident is called so; ranges are for what was sealed."""
    bad = replace(tiny_bundle.manifest, limits=replace(tiny_bundle.manifest.limits, max_tiles=-1))
    write_manifest(tiny_bundle.root, bad)
    path = tiny_bundle.root / "manifest.json"
    path.write_text(path.read_text().replace('"max_tiles": -1', '"max_tiles": -2'))
    with pytest.raises(DamagedBundle, match="changed after it was written"):
        open_bundle(tiny_bundle.root)


ANYRES = AnyResGeometry(112, (8, 8), pinpoints=((112, 224), (224, 112)))
TILES = TileGeometry(112, (4, 4), min_tiles=1, max_tiles=12)
SPLIT = SplitGeometry(112, (4, 4), longest_px=448)
QUARTERS = QuarterGeometry(980, (1, 64), shortest_px=378, longest_px=980, split=True)
PATCHES = PatchGeometry(448, (16, 16), patch_px=14, merge=2, min_pixels=3136, max_pixels=12_845_056)


@pytest.mark.parametrize("geometry", [ANYRES, TILES, SPLIT, QUARTERS, PATCHES], ids=lambda each: type(each).__name__)
def test_every_kind_of_geometry_passes(tiny_bundle: Bundle, geometry: Geometry) -> None:
    manifest = replace(tiny_bundle.manifest, model=replace(tiny_bundle.manifest.model, geometry=geometry))
    write_manifest(tiny_bundle.root, manifest)
    assert open_bundle(tiny_bundle.root).manifest.model.geometry == geometry


@pytest.mark.parametrize(
    ("geometry", "name"),
    [
        (replace(ANYRES, pinpoints=((112, 0),)), "pinpoints"),
        (replace(ANYRES, pinpoints=((112, 223),)), "pinpoints"),
        (replace(ANYRES, pinpoints=((112, 112 << 20),)), "pinpoints"),
        (replace(ANYRES, pinpoints=((112, 112),) * 5000), "pinpoints"),
        (replace(TILES, max_tiles=1 << 30), "max_tiles"),
        (replace(TILES, min_tiles=13), "min_tiles"),
        (replace(TILES, marker_tokens=-1), "marker_tokens"),
        (replace(SPLIT, longest_px=0), "longest_px"),
        (replace(QUARTERS, shortest_px=981), "shortest_px"),
        (replace(PATCHES, merge=0), "merge"),
        (replace(PATCHES, max_pixels=1 << 40), "max_pixels"),
        (replace(PATCHES, min_pixels=1 << 26), "min_pixels"),
    ],
)
def test_rules_that_no_family_has_are_refused(tiny_bundle: Bundle, geometry: Geometry, name: str) -> None:
    """Some would divide by nothing, or look at a billion arrangements of tiles."""
    manifest = replace(tiny_bundle.manifest, model=replace(tiny_bundle.manifest.model, geometry=geometry))
    write_manifest(tiny_bundle.root, manifest)
    with pytest.raises(DamagedBundle, match=rf"geometry\.{name}"):
        open_bundle(tiny_bundle.root)
