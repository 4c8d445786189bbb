"""A decoder of which one layer's weights are wrong: that layer is named, whatever the family."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests import tiny_decoders
from vlm_edge.backends.onnx import decoder, decoder_parity
from vlm_edge.backends.onnx.decoder_divergence import BEHIND, first_divergence
from vlm_edge.backends.onnx.parity import LIMITS, Divergence
from vlm_edge.core.bundle import open_bundle, read_manifest
from vlm_edge.errors import CheckFailed, DamagedBundle
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

LIMIT = LIMITS["fp32"].relative_error
DECODERS = [("llava", "llama"), ("llava", "qwen3"), ("paligemma", "gemma2"), ("qwen2_5_vl", "")]


def spoil(graph: Path, name: str) -> None:
    """Turn around the signs of every third value of a weight, in the file beside the graph."""
    model = onnx.load(str(graph), load_external_data=False)
    (tensor,) = (each for each in model.graph.initializer if each.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    data = graph.parent / place["location"]
    weights = np.memmap(data, kind, "r+", int(place.get("offset", 0)), (int(place["length"]) // kind.itemsize,))
    weights[::3] *= -1
    weights.flush()


def export(folder: Path, family: str, kind: str, **options: Any) -> Path:
    # longer than the prompts of the references, which a window would cut
    tiny_decoders.save(family, folder / "tiny", kind, **({"sliding_window": 60} if kind == "gemma2" else {}))
    with tiny_decoders.builder_in_process():
        export_model(folder / "tiny", folder / "out", ExportOptions(components=("llm",), threads=1, **options))
    return folder / "out"


@pytest.fixture(scope="module", params=DECODERS, ids="-".join)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("decoder"), *request.param)


@pytest.fixture
def graph(made: Path, tmp_path: Path) -> Path:
    """A copy of the bundle's, to be spoilt."""
    return Path(shutil.copytree(made, tmp_path / "out")) / "llm/cpu/model.onnx"


def located(graph: Path, stored: decoder_parity.DecoderReferences, *, limit: float) -> Divergence | None:
    text = read_manifest(graph.parents[2]).model.text
    return first_divergence(graph, text, stored, limit=limit)


def references(graph: Path) -> decoder_parity.DecoderReferences:
    return decoder_parity.load(graph.parent / "references.npz")


def test_a_right_graph_agrees_layer_by_layer(graph: Path) -> None:
    stored = references(graph)
    assert stored.layers is not None
    found = located(graph, stored, limit=LIMIT)
    assert found is not None
    assert found.layer == BEHIND
    # the samples are no copies of each other, so that agreeing means something
    assert all(
        not np.allclose(one, other, rtol=1e-2) for one, other in zip(stored.layers, stored.layers[1:], strict=False)
    )


@pytest.mark.parametrize(("layer", "part"), [(0, "attn.o_proj"), (3, "mlp.down_proj"), (4, "mlp.down_proj")])
def test_the_layer_that_was_spoilt_is_named(layer: int, part: str, graph: Path) -> None:
    stored = references(graph)
    spoil(graph, f"model.layers.{layer}.{part}.MatMul.weight")
    found = located(graph, stored, limit=LIMIT)
    assert found is not None
    assert (found.layer, found.relative_error > LIMIT) == (f"layers.{layer}", True)


def test_of_two_the_first_is_named(graph: Path) -> None:
    for layer in (4, 2):
        spoil(graph, f"model.layers.{layer}.mlp.down_proj.MatMul.weight")
    found = located(graph, references(graph), limit=LIMIT)
    assert found is not None
    assert found.layer == "layers.2"


def test_values_that_are_not_finite_are_a_divergence(graph: Path) -> None:
    stored = references(graph)
    assert stored.layers is not None
    layers = stored.layers.copy()
    layers[1] = np.nan
    found = located(graph, replace(stored, layers=layers), limit=LIMIT)
    assert found is not None
    assert found.layer != "layers.0"


def test_references_of_older_bundles_tell_nothing(graph: Path) -> None:
    assert located(graph, replace(references(graph), layers=None), limit=LIMIT) is None
    short = replace(references(graph), layers=np.zeros((2, 256), np.float32))
    assert located(graph, short, limit=LIMIT) is None


def test_samples_that_are_not_those_of_the_prompt_are_refused(graph: Path, tmp_path: Path) -> None:
    stored = references(graph)
    decoder_parity.save(replace(stored, layers=np.zeros((5, 7), np.float32)), tmp_path / "other.npz")
    with pytest.raises(DamagedBundle, match="samples of layers"):
        decoder_parity.load(tmp_path / "other.npz")


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_an_export_that_fails_names_the_layer(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = decoder.build_decoder

    def built(text_dir: Path, out: Path, **options: Any) -> list[str]:
        files = build(text_dir, out, **options)
        spoil(out / files[0], "model.layers.2.attn.o_proj.MatMul.weight")
        return files

    monkeypatch.setattr(decoder, "build_decoder", built)
    with pytest.raises(CheckFailed, match=r"llm graph differs from torch: .*; it begins at layers\.2 \("):
        export(tmp_path, "llava", "llama", dtype=dtype)
    assert not (tmp_path / "out/manifest.json").exists()


def test_a_head_that_is_wrong_is_named_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = decoder.build_decoder

    def built(text_dir: Path, out: Path, **options: Any) -> list[str]:
        files = build(text_dir, out, **options)
        spoil(out / files[0], "lm_head.MatMul.weight")
        return files

    monkeypatch.setattr(decoder, "build_decoder", built)
    with pytest.raises(CheckFailed, match=f"it begins at {BEHIND}$"):
        export(tmp_path, "llava", "llama")


def test_a_bundle_keeps_little_of_each_layer(made: Path) -> None:
    bundle = open_bundle(made)
    stored = decoder_parity.load(bundle.path("llm.references", target="cpu"))
    assert stored.layers is not None
    assert stored.layers.shape == (bundle.manifest.model.text.layers, decoder_parity.LAYER_VALUES)
