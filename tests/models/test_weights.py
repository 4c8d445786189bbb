"""Parts read from shards against transformers' from_pretrained on the same folder, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.models.tiny_checkpoints import FAMILIES, build, rename, save_state  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.models.weights import load_parts  # noqa: E402


def reference(root: Path, dtype: Any = torch.float32) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=dtype).eval()


def tensors_of(model: Any, part: str) -> dict[str, Any]:
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in every.items() if name == part or name.startswith(f"{part}.")}


def assert_same(family: str, root: Path, dtype: Any = torch.float32) -> None:
    expected, measured = reference(root, dtype), load_parts(open_checkpoint(root), FAMILIES[family].parts, dtype=dtype)
    for part in FAMILIES[family].parts:
        theirs, ours = tensors_of(expected, part), tensors_of(measured, part)
        assert theirs
        assert list(theirs) == list(ours)
        for name, tensor in theirs.items():
            assert tensor.dtype == ours[name].dtype, name
            assert torch.equal(tensor, ours[name]), name
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in FAMILIES[family].inputs().items()
    }
    with torch.no_grad():
        ours, theirs = (model.get_image_features(**inputs).pooler_output for model in (measured, expected))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    rest = [name for name, tensor in measured.named_parameters() if not tensor.is_meta]
    assert all(any(name == part or name.startswith(f"{part}.") for part in FAMILIES[family].parts) for name in rest)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["saved", "transformers 4", "transformers 5"])
def test_parts_equal_from_pretrained(family: str, layout: str, tmp_path: Path) -> None:
    model = build(family)
    if layout == "transformers 5":
        save_state(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    if layout == "transformers 4":
        rename(tmp_path, FAMILIES[family].old)
    assert_same(family, tmp_path)
