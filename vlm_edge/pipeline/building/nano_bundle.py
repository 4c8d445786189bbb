"""The embedded model's bundle, its decoder as onnxruntime-genai rounds it; `build` makes all others. Needs the `build` extra."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge import __version__
from vlm_edge.backends.onnx import decoder as onnx_decoder
from vlm_edge.backends.onnx import export, parity
from vlm_edge.core import discover
from vlm_edge.core.bundle import (
    ArtifactRef,
    Bundle,
    Manifest,
    ParityResult,
    atomic_write,
    hash_file,
    merge_artifacts,
    reference,
    write_manifest,
)  # fmt: skip
from vlm_edge.core.bundle_writer import CONFIGURATION
from vlm_edge.core.load import parse_text, to_plain
from vlm_edge.core.recipe import Recipe
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.vision.preprocess import global_view

TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "onnxruntime-genai")
DECODER_LIMIT = {"fp32": 1e-3, "int4": 0.35}
"""Relative error of logits against torch in fp32. 4-bit rounding is meant to differ; its limit only catches a broken graph."""
PARITY_QUESTION, PARITY_VIEWS = "what is the total?", 3


def build_bundle(checkpoint: Path, out: Path, recipe: Recipe, *, images: Sequence[NDArray[np.uint8]]) -> Bundle:
    """Export vision tower and projector, build the decoder, check both against torch, write the manifest last.

    checkpoint: a Hugging Face folder with tokenizer, preprocessor and chat template.  images: two or more RGB images for the parity
    check.  Raises BadInput for an incomplete checkpoint, CheckFailed when a part differs.
    """
    missing = [name for name in CONFIGURATION.values() if not (checkpoint / name).is_file()]
    if missing:
        raise BadInput(
            f"{checkpoint} lacks {', '.join(missing)}", remedy="save processor and tokenizer beside the weights"
        )
    family = discover.family(recipe.family)
    components = discover.family_part(recipe.family, "components")
    out.mkdir(parents=True, exist_ok=True)
    (out / "manifest.json").unlink(missing_ok=True)
    artifacts = [_copy(checkpoint, out, name, role) for role, name in CONFIGURATION.items()]
    config = parse_text((checkpoint / "config.json").read_text("utf-8"), "config.json")
    spec = family.spec(config)
    spec = replace(spec, geometry=replace(spec.geometry, separator_tokens=1 if recipe.view_tokens else 0))
    model = components.load_checkpoint(checkpoint)
    views = _views(images, spec.vision.image_px, checkpoint)
    checks = [export.export_encoder(components.VisionAndProjector(model), views, out / "vision/cpu")]
    artifacts.append(reference(out, "vision/cpu/model.onnx", role="vision.graph", target="cpu", dtype="fp32"))
    artifacts.append(_write_embedding(model.get_input_embeddings().weight, out))
    decoder = components.text_model(model)
    names = _build_decoder(decoder, checkpoint, out, recipe.packing.llm)
    for name in names:
        role = "llm.graph" if name == export.GRAPH else "llm.graph.data"
        artifacts.append(reference(out, f"llm/cpu/{name}", role=role, target="cpu", dtype=recipe.packing.llm))
    encoder = discover.backend("onnx").encoder(out / "vision/cpu/model.onnx", "cpu", 1)
    features = encoder.encode(views)
    checks.append(_decoder_parity(decoder, features, checkpoint, out, spec, recipe))
    manifest = Manifest(
        schema_version=1, name=recipe.name, source={"checkpoint": hash_file(checkpoint / "model.safetensors")},
        tools={"vlm-edge": __version__} | {tool: metadata.version(tool) for tool in TOOLS}, model=spec, limits=recipe.limits,
        defaults=recipe.defaults, artifacts=merge_artifacts((), artifacts), parity=tuple(checks), recipe=to_plain(recipe),
    )  # fmt: skip
    return write_manifest(out, manifest)


def _copy(checkpoint: Path, out: Path, name: str, role: str) -> ArtifactRef:
    with atomic_write(out / name) as stream:
        stream.write((checkpoint / name).read_bytes())
    return reference(out, name, role=role)


def _views(images: Sequence[NDArray[np.uint8]], side_px: int, checkpoint: Path) -> NDArray[np.float32]:
    """The parity images as normalised views [N, 3, S, S], with one of noise."""
    config = parse_text((checkpoint / "preprocessor_config.json").read_text("utf-8"), "preprocessor_config.json")
    noise = np.random.default_rng(0).integers(0, 256, (side_px, side_px, 3), np.uint8)
    stacked = np.stack([*(global_view(image, side_px) for image in images), noise]).astype(np.float32) / np.float32(255)
    normal = (stacked - np.float32(config["image_mean"])) / np.float32(config["image_std"])
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2).astype(np.float32))


def _write_embedding(weight: Any, out: Path) -> ArtifactRef:
    from safetensors.numpy import save

    with atomic_write(out / "llm/embed.safetensors") as stream:
        stream.write(save({"embed": np.ascontiguousarray(weight.detach().numpy().astype(np.float16))}))
    return reference(out, "llm/embed.safetensors", role="llm.embedding", dtype="fp16")


def _build_decoder(decoder: Any, checkpoint: Path, out: Path, precision: str) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        decoder.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(checkpoint / name, folder)
        return onnx_decoder.build_decoder(Path(folder), out / "llm/cpu", precision=precision)


def _decoder_parity(
    decoder: Any, features: NDArray[np.float32], checkpoint: Path, out: Path, spec: Any, recipe: Recipe
) -> ParityResult:
    """Last-position logits of a prompt of real views and a question, fed in two chunks, against torch.

    features: [N, P, Dl].  Made-up embeddings would not do: far from anything it was trained on, a rounded decoder
    differs at random.
    """
    import torch
    from tokenizers import Tokenizer

    engine = discover.backend("onnx").engine(
        out / "llm/cpu/model.onnx", spec.text, "cpu", 1, recipe.limits.max_model_len
    )
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    ids = tokenizer.encode(PARITY_QUESTION, add_special_tokens=False).ids
    with torch.no_grad():
        question = decoder.get_input_embeddings()(torch.tensor(ids)).numpy()
        rows = np.concatenate([*features[:PARITY_VIEWS], question])
        expected = decoder(inputs_embeds=torch.from_numpy(rows)[None]).logits[0, -1].numpy()
    engine.forward(rows[: len(rows) // 2])
    measured = engine.forward(rows[len(rows) // 2 :])
    result = parity.compare("llm", measured, expected, DECODER_LIMIT[recipe.packing.llm])
    if not result.ok:
        raise CheckFailed(
            f"the {recipe.packing.llm} decoder's logits differ from torch by {result.value:.3f}, limit {result.limit}",
            remedy="build it with packing.llm: fp32 to see whether rounding or the graph is at fault",
        )
    return result
