"""Checkpoints in miniature that `quantize` takes, with a tokenizer that works, and calibration data for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from tests import exportable, tiny_vlms
from tests.quant import text_models
from tests.runnable import SPECIAL
from vlm_edge.core.bundle import hash_file
from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions

OPTIONS = QuantizeOptions(group_size=32, samples=10, seqlen=48, search_tokens=64, device="cpu")
TEXT = {**text_models.SIZES, "num_key_value_heads": 2}
PIXELS = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789 .,?!:-ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def save_tokenizer(folder: Path, special: Sequence[str] = ("<image>",)) -> None:
    """One token a character; <s>, </s> and a family's control tokens beside them, its placeholder as number 3."""
    names = ["<pad>", "<s>", "</s>", special[0], "<unk>", *special[1:], *LETTERS]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in names[: 4 + len(special)]]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 2}))


def save_text(
    folder: Path, kind: str = "llama", *, outliers: bool = True, dtype: torch.dtype = torch.float16, **sizes: Any
) -> Any:
    """A plain language model; returns it as it was saved, in fp32."""
    model = text_models.text_model(kind, **sizes)
    if outliers:
        model = text_models.with_outliers(model)
    deepcopy(_as_stored(model, dtype)).to(dtype).save_pretrained(folder)
    save_tokenizer(folder)
    return model


def _as_stored(model: Any, dtype: torch.dtype) -> Any:
    """Parameters only: a model's `half()` would round its rotary frequencies too."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    return model


def save_vlm(family: str, folder: Path, **named: Any) -> Any:
    """A family's model whose decoder can be cut into groups of 32."""
    original, tiny_vlms.TEXT = tiny_vlms.TEXT, TEXT
    try:
        model = text_models.with_outliers(_built(family))
    finally:
        tiny_vlms.TEXT = original
    model = _as_stored(model, torch.float16)  # so that its embedding table loses nothing
    if family == "internvl":
        model.config.image_seq_length = 4
    model.save_pretrained(folder, **named)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**PIXELS, **exportable.PREPROCESSORS[family]}), "utf-8"
    )
    save_tokenizer(folder, SPECIAL[family])
    return model


def _built(family: str) -> Any:
    if family in ("qwen2_vl", "qwen2_5_vl"):
        own = {"hidden_size": 64} if family == "qwen2_vl" else {"out_hidden_size": 64}
        sizes = {
            "qwen2_vl": {"depth": 2, "embed_dim": 48, "num_heads": 3, "mlp_ratio": 2, "patch_size": 7},
            "qwen2_5_vl": {
                "depth": 2, "hidden_size": 48, "num_heads": 3, "intermediate_size": 88, "patch_size": 7, "window_size": 56,
                "fullatt_block_indexes": [1],
            },
        }[family]  # fmt: skip
        name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL"}[family]
        config = getattr(transformers, f"{name}Config")(
            vision_config={**sizes, **own}, text_config={**TEXT, **text_models.ROPE}, image_token_id=3
        )
        return tiny_vlms.build(f"{name}ForConditionalGeneration", config)
    if family == "paligemma":
        config = transformers.PaliGemmaConfig(
            vision_config={**tiny_vlms.SIGLIP, "projection_dim": 64}, projection_dim=64, image_token_index=3,
            text_config={"model_type": "gemma", **TEXT, "head_dim": 16},
        )  # fmt: skip
        return tiny_vlms.build("PaliGemmaForConditionalGeneration", config)
    if family == "idefics2":
        perceiver = {
            "hidden_size": 64, "resampler_n_latents": 5, "resampler_depth": 1, "resampler_n_heads": 4,
            "resampler_head_dim": 16, "num_key_value_heads": 2,
        }  # fmt: skip
        config = transformers.Idefics2Config(
            vision_config={"image_size": 56, **tiny_vlms.VIT}, perceiver_config=perceiver, image_token_id=3,
            text_config={"model_type": "mistral", **TEXT},
        )  # fmt: skip
        return tiny_vlms.build("Idefics2ForConditionalGeneration", config)
    return tiny_vlms.FAMILIES[family].model()


def write_data(folder: Path, count: int = 10, *, images: bool = True, text: str = "what is it?") -> Path:
    """A JSON Lines file; every second sample has an image."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows = []
    for i in range(count):
        row: dict[str, Any] = {"text": f"{text} number {i}", "answer": f"it is {i * 7}"}
        if images and i % 2:
            Image.fromarray(random.integers(0, 256, (30, 44, 3), np.uint8)).save(folder / f"{i}.png")
            row["image"] = f"{i}.png"
        rows.append(row)
    return write_lines(folder / "data.jsonl", rows)


def write_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def hashes(out: Path) -> dict[str, str]:
    paths = [*(out / "llm").rglob("*.safetensors"), out / "llm/awq/config.json"]
    return {path.relative_to(out).as_posix(): hash_file(path) for path in paths}
