"""Gemma's norms in a graph that the builder made of a bf16 checkpoint, against torch's own sum in fp32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")

from onnx import numpy_helper  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from vlm_edge.backends.onnx.offset_norms import restore_norms  # noqa: E402
from vlm_edge.core.specs import TextSpec  # noqa: E402
from vlm_edge.errors import CheckFailed  # noqa: E402

WIDTH, LAYERS = 6, 2
TEXT = TextSpec(hidden=WIDTH, layers=LAYERS, heads=1, kv_heads=1, head_dim=8, intermediate=8, vocab=9, max_positions=64)
NAMES = {
    **{f"model.layers.{i}.{at}_layernorm.weight": f"model.layers.{i}.{at}_layernorm.weight"
       for i in range(LAYERS) for at in ("input", "post_attention")},
    f"model.layers.{LAYERS}.final_norm_layernorm.weight": "model.norm.weight",
}  # fmt: skip


def made(folder: Path, stored: Any, graph: type[np.floating]) -> tuple[Any, dict[str, Any]]:
    """A checkpoint of norms, and the graph as the builder leaves it, with its data outside."""
    random = torch.Generator().manual_seed(0)
    norms = {name: (0.3 * torch.randn(WIDTH, generator=random)).to(stored) for name in NAMES.values()}
    (folder / "text").mkdir()
    save_file(norms | {"model.layers.0.mlp.up_proj.weight": torch.zeros(3, 3)}, folder / "text/model.safetensors")
    rounded = [
        numpy_helper.from_array((1 + norms[source]).float().numpy().astype(graph), name)
        for name, source in NAMES.items()
    ]
    other = numpy_helper.from_array(np.full((4, 4), 7, graph), "model.layers.0.attn.o_proj.weight")
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [*rounded[:3], other, *rounded[3:]]))
    path = folder / "model.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return onnx.load(path, load_external_data=False), norms


def weights(folder: Path) -> dict[str, Any]:
    model = onnx.load(folder / "model.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


@pytest.mark.parametrize("graph", [np.float32, np.float16])
@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_the_sum_is_rounded_once(stored: str, graph: type[np.floating], tmp_path: Path) -> None:
    model, norms = made(tmp_path, getattr(torch, stored), graph)
    restore_norms(model, tmp_path, tmp_path / "text", TEXT)
    found = weights(tmp_path)
    for name, source in NAMES.items():
        np.testing.assert_array_equal(
            found[name], (1 + norms[source].double()).numpy().astype(np.float32).astype(graph)
        )
    np.testing.assert_array_equal(found["model.layers.0.attn.o_proj.weight"], 7)


def test_a_graph_with_other_norms(tmp_path: Path) -> None:
    model, _ = made(tmp_path, torch.bfloat16, np.float32)
    del model.graph.initializer[0]
    with pytest.raises(CheckFailed, match="has 4 norms, its checkpoint 5"):
        restore_norms(model, tmp_path, tmp_path / "text", TEXT)


def test_a_norm_of_another_width(tmp_path: Path) -> None:
    model, norms = made(tmp_path, torch.bfloat16, np.float32)
    norms["model.norm.weight"] = torch.zeros(WIDTH + 1)
    save_file(norms, tmp_path / "text/model.safetensors")
    with pytest.raises(CheckFailed, match="24 bytes in the graph, 28 in the checkpoint"):
        restore_norms(model, tmp_path, tmp_path / "text", TEXT)
