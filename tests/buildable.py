"""What `build` takes in miniature: a LLaVA checkpoint, calibration data, and a recipe for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests import exportable, quantizable
from tests.tiny_decoders import builder_in_process
from vlm_edge.core.recipe import Recipe, load_recipe
from vlm_edge.pipeline.building.build import BuildOptions

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "family": "llava",
    "packing": {"llm": "int4", "vision": "fp32", "group_size": 32},
    "limits": {"max_tiles": 1, "max_model_len": 96},
    "defaults": {"tiling": "auto", "reduce": "threshold", "threshold": 0.9, "max_new_tokens": 8},
}


def write_recipe(folder: Path, **parts: Any) -> Path:
    """The recipe with parts of it changed; mappings are merged."""
    content = {**RECIPE}
    for part, value in parts.items():
        content[part] = {**content.get(part, {}), **value} if isinstance(value, dict) else value
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content['name']}.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def recipe(folder: Path, **parts: Any) -> Recipe:
    """The same, read."""
    return load_recipe(write_recipe(folder, **parts))


def save(folder: Path, *, outliers: bool = True) -> tuple[Path, Path]:
    """A checkpoint and its calibration data; no layer of it has as many outputs as the vocabulary has words."""
    with pytest.MonkeyPatch.context() as patch:
        if not outliers:
            patch.setattr(quantizable.text_models, "with_outliers", lambda model: model)
        patch.setattr(quantizable, "TEXT", {**quantizable.TEXT, "vocab_size": 104})
        quantizable.save_vlm("llava", folder / "tiny-llava")
    return folder / "tiny-llava", quantizable.write_data(folder / "data", 4)


def options(data: Path, **named: Any) -> BuildOptions:
    """Few samples, few tokens, and images of the model's own size."""
    return BuildOptions(**{"calib": data, "samples": 4, "seqlen": 48, "image_size": "60x40", **named})


@contextmanager
def quickly() -> Iterator[None]:
    """What starts processes or takes seconds each time is done in this process, and once."""
    with exportable.exporting_once(), builder_in_process():
        yield


def files(out: Path) -> dict[str, tuple[bytes, int]]:
    """Every visible file's content and time."""
    found = (path for path in out.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(out)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}
