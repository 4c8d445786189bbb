"""Checkpoint folders of tests/tiny_vlms.py with the preprocessor files that their images need."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from tests import tiny_vlms
from vlm_edge.backends.onnx import export
from vlm_edge.backends.onnx.references import fingerprint

PAGE = Path(__file__).parents[1] / "calibration/pages/page2.png"
SQUARE = {"height": 28, "width": 28}
PIXELS = {"patch_size": 7, "merge_size": 2, "min_pixels": 784, "max_pixels": 50 * 196}
PREPROCESSORS: dict[str, dict[str, Any]] = {
    "llava": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28}, "crop_size": SQUARE},
    "llava_next": {
        "image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": 28}, "crop_size": SQUARE,
        "image_grid_pinpoints": [[28, 56], [56, 28]],
    },
    "internvl": {"image_processor_type": "GotOcr2ImageProcessor", "size": SQUARE, "max_patches": 4},
    "idefics3": {
        "image_processor_type": "Idefics3ImageProcessor", "size": {"longest_edge": 56},
        "max_image_size": {"longest_edge": 28},
    },
    "idefics2": {"image_processor_type": "Idefics2ImageProcessor", "size": {"shortest_edge": 30, "longest_edge": 56}},
    "paligemma": {"image_processor_type": "SiglipImageProcessor", "size": SQUARE},
    "qwen2_vl": {"image_processor_type": "Qwen2VLImageProcessor", **PIXELS},
    "qwen2_5_vl": {"image_processor_type": "Qwen2_5_VLImageProcessor", **PIXELS},
}  # fmt: skip


def save(family: str, folder: Path, *, seed: int = 0, max_shard_size: str = "50GB") -> Any:
    """Write the family's model into `folder` as transformers does, with its preprocessor file; returns the model."""
    model = tiny_vlms.randomized(tiny_vlms.FAMILIES[family].model(), seed)
    return save_model(family, model, folder, max_shard_size=max_shard_size)


def save_model(family: str, model: Any, folder: Path, *, max_shard_size: str = "50GB") -> Any:
    """The same for a model of the family that is there already."""
    if family == "internvl":
        model.config.image_seq_length = 4
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[family]), "utf-8")
    (folder / "tokenizer.json").write_text('{"made": "up"}', "utf-8")
    return model


def remembering(trace: Callable[..., export.Traced], known: dict[Any, Any]) -> Callable[..., export.Traced]:
    """`export.trace`, which takes seconds, once for each set of weights and inputs; what it gives is the same."""

    def traced(module: Any, inputs: Any, *, opset: int, **named: Any) -> export.Traced:
        weights = {name: value.numpy() for name, value in module.state_dict().items()}
        key = opset, fingerprint(weights), tuple(map(fingerprint, inputs))
        if key not in known:
            found = trace(module, inputs, opset=opset, **named | {"ranges": True})
            known[key] = found, ir.serde.serialize_model(found.take())
        found, graph = known[key]
        return replace(found, graph=ir.serde.deserialize_model(graph))

    return traced
