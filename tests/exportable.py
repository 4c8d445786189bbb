"""Checkpoint folders of tests/tiny_vlms.py with the preprocessor files that their images need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch

from tests import tiny_vlms
from vlm_edge.backends.onnx.references import fingerprint
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

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


EXPORTED: dict[Any, bytes] = {}
"""What torch's exporter made in this session, by weights, operator set and inputs."""


def model_of(family: str, seed: int = 0) -> Any:
    """The family's model; with seed 0 the one that tests of the exporter use too."""
    model = tiny_vlms.FAMILIES[family].model()
    if seed:
        tiny_vlms.randomized(model, seed)
    return model


def save(family: str, folder: Path, *, seed: int = 0, max_shard_size: str = "50GB") -> Any:
    """Write the family's model into `folder` as transformers does, with its preprocessor file; returns the model."""
    return save_model(family, model_of(family, seed), folder, max_shard_size=max_shard_size)


def save_model(family: str, model: Any, folder: Path, *, max_shard_size: str = "50GB") -> Any:
    """The same for a model of the family that is there already."""
    if family == "internvl":
        model.config.image_seq_length = 4
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSORS[family]), "utf-8")
    (folder / "tokenizer.json").write_text('{"made": "up"}', "utf-8")
    return model


def everything(folder: Path) -> dict[str, bytes]:
    """All files by their path in the folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def exporting_once() -> Iterator[None]:
    """While it lasts, torch's exporter, which takes 5 to 20 s, runs once in a session for the same weights and inputs.

    The sizes of inputs do not count: an exported graph is for any size, and whoever exports compares it on the sizes given.
    """
    export = torch.onnx.export

    def remembered(module: Any, args: Any, *, kwargs: Any, opset_version: int, **named: Any) -> Any:
        weights = fingerprint({name: value.numpy() for name, value in module.state_dict().items()})
        kinds = sorted((name, str(value.dtype), value.ndim) for name, value in kwargs.items())
        key = weights, opset_version, str(kinds), str(named["dynamic_shapes"])
        if key not in EXPORTED:
            made = export(module, args, kwargs=kwargs, opset_version=opset_version, **named)
            EXPORTED[key] = ir.serde.serialize_model(made.model).SerializeToString()
        model = ir.from_proto(onnx.load_from_string(EXPORTED[key]))
        return SimpleNamespace(model=model, exported_program=SimpleNamespace(state_dict={}))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", remembered)
        yield


def export_in_child(known: dict[Any, bytes], model: Path, out: Path, options: ExportOptions) -> None:
    """An export in a process of its own, which is handed what the exporter made before."""
    EXPORTED.update(known)
    with exporting_once():
        export_model(model, out, options)
