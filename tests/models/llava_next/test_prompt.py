"""LLaVA-NeXT's run of visual tokens against transformers' own packing of the same features."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from tests import runnable
from tests.runnable import Runnable
from vlm_edge.core.bundle import open_bundle
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.models.llava_next.prompt import LlavaNextPrompt
from vlm_edge.pipeline.exporting.export import export_model

SIZES = [(90, 61), (61, 90), (28, 28), (300, 20), (3, 200), (56, 28), (1, 1), (57, 28), (2000, 1), (1, 2000)]
"""(width, height); the thinnest leave no row or column of tiles' tokens."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Runnable:
    return runnable.make("llava_next", tmp_path_factory.mktemp("next"))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_a_run_is_what_transformers_packs(made: Runnable, size: tuple[int, int]) -> None:
    layout = made.bundle.manifest.model.geometry.layout(size)
    features = torch.randn(layout.views, 16, 60, generator=torch.Generator().manual_seed(sum(size)))
    model = made.model.model
    with torch.no_grad():
        (expected,), _ = model.pack_image_features(
            [features], torch.tensor([[size[1], size[0]]]), "default", model.image_newline
        )
    (run,) = LlavaNextPrompt(made.bundle).runs(list(features.numpy()), layout)
    np.testing.assert_array_equal(run, expected.numpy())
    assert len(run) == layout.visual_tokens


def test_the_whole_image_alone_ends_in_one_newline(made: Runnable) -> None:
    layout = made.bundle.manifest.model.geometry.whole().layout((90, 61))
    features = np.random.default_rng(0).normal(size=(1, 16, 60)).astype(np.float32)
    (run,) = LlavaNextPrompt(made.bundle).runs(list(features), layout)
    newline = made.model.model.image_newline.detach().numpy()
    np.testing.assert_array_equal(run, np.concatenate([features[0], newline[None]]))
    assert len(run) == layout.visual_tokens


def test_a_reduction_that_keeps_everything_changes_nothing(made: Runnable) -> None:
    for size in SIZES:
        layout = made.bundle.manifest.model.geometry.layout(size)
        views = list(np.random.default_rng(0).normal(size=(layout.views, 16, 60)).astype(np.float32))
        prompt = LlavaNextPrompt(made.bundle)
        if layout.views == 1 or layout.token_grid[0] * layout.token_grid[1] == 0:
            continue
        (expected,) = prompt.runs(views, layout)
        (run,) = prompt.reduced_runs(views, layout, [np.arange(16, dtype=np.int32)] * len(views))
        np.testing.assert_array_equal(run, expected)


@pytest.mark.parametrize("size", [(90, 61), (61, 90), (300, 20), (56, 28)], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_reduced_tiles_stay_in_rows(made: Runnable, size: tuple[int, int], seed: int) -> None:
    """By a loop over places: a token comes where it is met first, a newline behind each row in which one came."""
    rng = np.random.default_rng(seed)
    geometry = made.bundle.manifest.model.geometry
    layout = geometry.layout(size)
    views, members = [], []
    for _ in range(layout.views):
        owners = rng.integers(-1, 6, 16)
        _, named = np.unique(owners[owners >= 0], return_inverse=True)
        owners[owners >= 0] = named
        members.append(owners.astype(np.int32))
        views.append(rng.normal(size=(int(owners.max()) + 1, 60)).astype(np.float32))
    newline = made.model.model.image_newline.detach().numpy()
    high, wide = layout.token_grid
    top, left = (layout.rows * 4 - high) // 2, (layout.cols * 4 - wide) // 2
    expected, come = list(views[0]), set()
    for y in range(layout.rows * 4):
        row = []
        for tile in range(layout.cols):
            for x in range(4 * tile, 4 * tile + 4):
                view = 1 + y // 4 * layout.cols + tile
                token = members[view][y % 4 * 4 + x % 4]
                inside = top <= y < top + high and left <= x < left + wide
                if token >= 0 and inside and (view, token) not in come:
                    come.add((view, token))
                    row.append(views[view][token])
        expected += [*row, newline] if row else []
    (run,) = LlavaNextPrompt(made.bundle).reduced_runs(views, layout, members)
    np.testing.assert_array_equal(run, np.stack(expected))


def test_export_keeps_the_newline(made: Runnable) -> None:
    kept = [artifact for artifact in made.bundle.manifest.artifacts if artifact.role == "vision.newline"]
    assert [(artifact.path, artifact.target, artifact.dtype) for artifact in kept] == [
        ("vision/newline.safetensors", "any", "fp32")
    ]


def test_a_newline_of_another_width_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    made = runnable.make("llava_next", tmp_path)
    save_file({"newline": np.zeros((1, 61), np.float32)}, made.bundle.root / "vision/newline.safetensors")
    with pytest.raises(DamagedBundle, match="newline"):
        LlavaNextPrompt(made.bundle)
    with pytest.raises(DamagedBundle, match="newline"):
        open_bundle(made.bundle.root)


def test_a_class_token_in_the_grid_is_refused_when_the_bundle_is_made(tmp_path: Path) -> None:
    made = runnable.make("llava_next", tmp_path)
    path = tmp_path / "checkpoint/config.json"
    plain = json.loads(path.read_text()) | {"vision_feature_select_strategy": "full"}
    path.write_text(json.dumps(plain))
    with pytest.raises(BadInput, match="17 tokens of a view"):
        export_model(tmp_path / "checkpoint", tmp_path / "new")
    shutil.copy(path, made.bundle.root / "config.json")
    with pytest.raises(DamagedBundle, match="17 tokens of a view"):
        LlavaNextPrompt(made.bundle)
