"""A bundle in miniature: a real manifest over files that hold nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlm_edge.core.bundle import Bundle, Limits, Manifest, ParityResult, RunDefaults, reference, write_manifest
from vlm_edge.core.geometry import TokenGeometry
from vlm_edge.core.specs import ModelSpec, ProjectorSpec, TextSpec, VisionSpec

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch's threads, beside those of the other process

TINY_MODEL = ModelSpec(
    family="llava",
    vision=VisionSpec(width=192, layers=5, heads=6, mlp=384, image_px=112, patch_px=14),
    projector=ProjectorSpec(192, 256, 256),
    text=TextSpec(
        hidden=256, layers=4, heads=4, kv_heads=2, head_dim=64, intermediate=512, vocab=128, max_positions=1024
    ),
    geometry=TokenGeometry(view_px=112, grid=(8, 8), separator_tokens=1),
)
TINY_FILES = {
    "vision/cpu/model.onnx": ("vision.graph", "cpu", "fp16", b"vision" * 300),
    "llm/cpu/model.onnx": ("llm.graph", "cpu", "int4", b"decoder" * 100),
    "tokenizer.json": ("tokenizer", "any", "", b"{}"),
}


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes what the user's cache remembers of verified files."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def tiny_bundle(tmp_path: Path) -> Bundle:
    """`<tmp>/tiny` with three small files; it opens and verifies, and has nothing to run."""
    root = tmp_path / "tiny"
    artifacts = []
    for path, (role, target, dtype, content) in TINY_FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
        artifacts.append(reference(root, path, role=role, target=target, dtype=dtype))
    manifest = Manifest(
        schema_version=1,
        name="tiny",
        source={"model": "made here", "revision": "0"},
        tools={"torch": "2.13.0", "onnxruntime": "1.32.0"},
        model=TINY_MODEL,
        limits=Limits(max_tiles=6, max_model_len=768),
        defaults=RunDefaults(reduce="threshold"),
        artifacts=tuple(artifacts),
        parity=(ParityResult("vision", "max_abs_error", 1.5e-6, 1e-4, True),),
        recipe={"packing": {"llm": "int4"}, "view_tokens": ["<global>", "<tile>"]},
    )
    return write_manifest(root, manifest)
