"""Checkpoints of real sizes with random weights, sharded as published ones are, for measurements that no weights are needed for.

python -m benchmarks.shapes make SHAPE FOLDER [--outliers 32]     SHAPE: one of the names that `list` prints
python -m benchmarks.shapes list

Written a few MiB at a time, so that a checkpoint of 13.5 GB needs no memory. --outliers makes a twin of the same function whose
vision tower has channels with activations that many times larger: norms multiply them, and the layers that read them divide.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

SHARD_BYTES = 4 << 30
CHUNK_VALUES = 1 << 22
OUTLIER_CHANNELS = 6
SPECIAL = ("<unk>", "<s>", "</s>", "<image>", "<img>", "</img>", "<IMG_CONTEXT>")
CLIP_L = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768,
}  # fmt: skip
SIGLIP_SO400M = {
    "model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
    "num_attention_heads": 16, "image_size": 384, "patch_size": 14, "vision_use_head": False,
}  # fmt: skip
INTERNVIT_300M = {
    "model_type": "internvl_vision", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": [448, 448], "patch_size": [14, 14], "attention_bias": True,
}  # fmt: skip
LLAMA_7B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "vocab_size": 32064,
    "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
}  # fmt: skip
LLAMA_1B = LLAMA_7B | {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4,
}  # fmt: skip
QWEN2_HALF_B = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 32064,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 4096, "tie_word_embeddings": True,
}  # fmt: skip
CLIP_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True, "resample": 3, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}  # fmt: skip
SIGLIP_PROCESSOR = {
    "image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}, "resample": 3,
    "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
}  # fmt: skip
INTERNVL_PROCESSOR = {
    "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": 448, "width": 448}, "crop_to_patches": True,
    "min_patches": 1, "max_patches": 12, "resample": 3, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
CHAT = (
    "{% for message in messages %}USER: {% for part in message.content %}{% if part.type == 'image' %}<image>\n{% else %}"
    "{{ part.text }}{% endif %}{% endfor %} {% endfor %}ASSISTANT:"
)


@dataclass(frozen=True)
class Shape:
    """A model's sizes. model: name of the transformers class. config: arguments of its config class."""

    model: str
    config: dict[str, Any]
    processor: dict[str, Any]
    image_token: str = "<image>"


def _llava(vision: dict[str, Any], text: dict[str, Any], processor: dict[str, Any]) -> Shape:
    strategy = "default" if vision["model_type"] == "clip_vision_model" else "full"
    return Shape(
        "LlavaForConditionalGeneration",
        {"vision_config": vision, "text_config": text, "vision_feature_layer": -2, "vision_feature_select_strategy": strategy},
        processor,
    )  # fmt: skip


SHAPES = {
    "llava-1.5-7b": _llava(CLIP_L, LLAMA_7B, CLIP_PROCESSOR),
    "llava-1.1b": _llava(CLIP_L, LLAMA_1B, CLIP_PROCESSOR),
    "llava-siglip-so400m": _llava(SIGLIP_SO400M, QWEN2_HALF_B, SIGLIP_PROCESSOR),
    "internvl-300m": Shape(
        "InternVLForConditionalGeneration",
        {"vision_config": INTERNVIT_300M, "text_config": QWEN2_HALF_B, "downsample_ratio": 0.5},
        INTERNVL_PROCESSOR,
        "<IMG_CONTEXT>",
    ),
    "llava-next-1.1b": Shape(
        "LlavaNextForConditionalGeneration",
        {
            "vision_config": CLIP_L, "text_config": LLAMA_1B, "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
        CLIP_PROCESSOR | {
            "image_processor_type": "LlavaNextImageProcessor",
            "image_grid_pinpoints": [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
        },
    ),
}  # fmt: skip
_TINY = {
    "vision_config": CLIP_L
    | {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 2},
    "text_config": LLAMA_1B
    | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
SHAPES |= {
    f"{name}-tiny": replace(SHAPES[f"{name}-1.1b"], config=SHAPES[f"{name}-1.1b"].config | _TINY)
    for name in ("llava", "llava-next")
}
"""To try a script with: as many tokens as their large sisters, next to no work for each."""


def make(name: str, folder: Path, *, outliers: float = 1.0, seed: int = 0) -> None:
    """Write a checkpoint in fp16: config, tokenizer, processor and shards of SHARD_BYTES at most."""
    shape = SHAPES[name]
    model_class = getattr(transformers, shape.model)
    image_token = SPECIAL.index(shape.image_token)
    key = "image_token_index" if "Llava" in shape.model else "image_token_id"
    config = model_class.config_class(**shape.config, **{key: image_token})
    config.architectures, config.dtype = [shape.model], torch.float16
    config.text_config.bos_token_id, config.text_config.eos_token_id = 1, 2
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = model_class(config)
    tied = set(model.all_tied_weights_keys) if config.text_config.tie_word_embeddings else set()
    tensors = [(n, tuple(t.shape)) for n, t in model.named_parameters(remove_duplicate=False) if n not in tied]
    _write_shards(folder, tensors, _values(outliers, seed))
    tokenizer(shape.config["text_config"]["vocab_size"]).save(str(folder / "tokenizer.json"))
    files = {
        "preprocessor_config.json": {"do_resize": True, "do_rescale": True, "do_normalize": True, **shape.processor},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
            "start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>",
        },
        "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
    }  # fmt: skip
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content, indent=1) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT.replace("<image>", shape.image_token))


def tokenizer(vocab: int) -> Tokenizer:
    """Bytes, the special tokens first, and words without a use up to `vocab`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    known = [*SPECIAL, *letters, *(f"<spare_{i}>" for i in range(vocab - len(SPECIAL) - len(letters)))]
    built = Tokenizer(models.BPE({token: i for i, token in enumerate(known)}, []))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    built.decoder = decoders.ByteLevel()
    built.add_special_tokens(list(SPECIAL))
    return built


Values = Callable[[str, tuple[int, ...]], Iterator[np.ndarray]]


def _values(outliers: float, seed: int) -> Values:
    """What a tensor holds, in pieces: noise of a scale that keeps activations near 1, norms near 1."""
    random = np.random.default_rng(seed)

    def pieces(name: str, shape: tuple[int, ...]) -> Iterator[np.ndarray]:
        factors = _outlier_factors(name, shape, outliers)
        left = int(np.prod(shape))
        row = shape[-1]
        step = max(row, CHUNK_VALUES // row * row)
        while left:
            noise = random.standard_normal(min(step, left), np.float32)
            if len(shape) == 1:
                values = (1.0 if "norm" in name and name.endswith("weight") else 0.0) + 0.05 * noise
            else:
                fan_in = int(np.prod(shape[1:]))
                values = noise * (0.02 if "embed" in name else fan_in**-0.5)
            if factors is not None:
                values = (values.reshape(-1, row) * factors).ravel()
            yield values.astype(np.float16)
            left -= len(noise)

    return pieces


def _outlier_factors(name: str, shape: tuple[int, ...], outliers: float) -> np.ndarray | None:
    """By channel: norms times `outliers`, the columns that read them divided by it; elsewhere nothing."""
    if outliers == 1.0 or "vision_tower" not in name:
        return None
    made = re.search(r"layer_norm[12]\.(weight|bias)$|layernorm_(before|after)\.(weight|bias)$", name)
    read = re.search(r"\.(q_proj|k_proj|v_proj|fc1)\.weight$", name)
    if not (made or read):
        return None
    layer = int(re.search(r"layers?\.(\d+)\.", name).group(1))
    channels = np.random.default_rng(layer).choice(shape[-1], OUTLIER_CHANNELS, replace=False)
    factors = np.ones(shape[-1], np.float32)
    factors[channels] = outliers if made else 1 / outliers
    return factors


def _write_shards(folder: Path, tensors: list[tuple[str, tuple[int, ...]]], values: Values) -> None:
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    filled = 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        if filled + size > SHARD_BYTES and shards[-1]:
            shards.append([])
            filled = 0
        shards[-1].append((name, shape))
        filled += size
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for file, shard in zip(names, shards, strict=True):
        _write_shard(folder / file, shard, values)
    index = {name: file for file, shard in zip(names, shards, strict=True) for name, _ in shard}
    total = sum(2 * int(np.prod(shape)) for _, shape in tensors)
    content = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=1))


def _write_shard(path: Path, tensors: list[tuple[str, tuple[int, ...]]], values: Values) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors:
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            for piece in values(name, shape):
                stream.write(piece.data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list")
    making = commands.add_parser("make")
    making.add_argument("shape", choices=list(SHAPES))
    making.add_argument("folder", type=Path)
    making.add_argument("--outliers", type=float, default=1.0)
    arguments = parser.parse_args()
    if arguments.command == "list":
        print("\n".join(SHAPES))
    else:
        make(arguments.shape, arguments.folder, outliers=arguments.outliers)
