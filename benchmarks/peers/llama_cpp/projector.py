"""A LLaVA's vision tower and projector as a GGUF file for llama.cpp's libmtmd.

    python -m benchmarks.peers.llama_cpp.projector CHECKPOINT OUT.gguf

CHECKPOINT: a folder of a LLaVA with a CLIP tower and a projector of two layers. Matrices in F16; norms, biases and embeddings in
F32. Runs in llama.cpp's own environment (setup.sh); what only that one has is imported where it is used. The names of settings
and tensors are those that tools/mtmd/clip-impl.h of llama.cpp looks for.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import safe_open

if TYPE_CHECKING:
    from gguf import GGUFWriter

LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.out_proj": "attn_out",
    "layer_norm1": "ln1", "layer_norm2": "ln2", "mlp.fc1": "ffn_up", "mlp.fc2": "ffn_down",
}  # fmt: skip
OTHERS = {
    "vision_tower.embeddings.class_embedding": "v.class_embd",
    "vision_tower.embeddings.patch_embedding.weight": "v.patch_embd.weight",
    "vision_tower.embeddings.position_embedding.weight": "v.position_embd.weight",
}
PAIRS = {
    "vision_tower.pre_layrnorm": "v.pre_ln",
    "multi_modal_projector.linear_1": "mm.0",
    "multi_modal_projector.linear_2": "mm.2",
}
LOOKED_UP = "v.position_embd.weight"
"""A matrix whose rows are added, not multiplied."""
USES_GELU = {"quick_gelu": False, "gelu": True}

Setting = bool | int | float | str | list[int] | list[float]


def layers_read(config: dict[str, Any]) -> int:
    """Encoder layers in front of the hidden state that the projector reads; those behind it are left out of the file."""
    layer = config["vision_feature_layer"]
    return int(layer if layer >= 0 else config["vision_config"]["num_hidden_layers"] + 1 + layer)


def settings(config: dict[str, Any], processor: dict[str, Any]) -> dict[str, Setting]:
    """From config.json and preprocessor_config.json; raises SystemExit for what libmtmd would compute in another way."""
    vision = config["vision_config"]
    wanted = {
        "model": (config["model_type"], ("llava",)), "tower": (vision["model_type"], ("clip_vision_model",)),
        "activation": (vision["hidden_act"], tuple(USES_GELU)), "projector": (config["projector_hidden_act"], ("gelu",)),
        "choice of features": (config["vision_feature_select_strategy"], ("default",)),
    }  # fmt: skip
    for what, (value, known) in wanted.items():
        if value not in known:
            raise SystemExit(f"a {what} of {value} is not converted, only {' and '.join(known)}")
    layers = layers_read(config)
    return {
        "clip.has_vision_encoder": True,
        "clip.projector_type": "mlp",
        "clip.use_gelu": USES_GELU[vision["hidden_act"]],
        "clip.vision.image_size": vision["image_size"],
        "clip.vision.patch_size": vision["patch_size"],
        "clip.vision.embedding_length": vision["hidden_size"],
        "clip.vision.feed_forward_length": vision["intermediate_size"],
        "clip.vision.projection_dim": config["text_config"]["hidden_size"],
        "clip.vision.block_count": layers,
        # Without it libmtmd leaves out a layer of those that are there.
        "clip.vision.feature_layer": [layers],
        "clip.vision.attention.head_count": vision["num_attention_heads"],
        "clip.vision.attention.layer_norm_epsilon": float(vision["layer_norm_eps"]),
        "clip.vision.image_mean": [float(value) for value in processor["image_mean"]],
        "clip.vision.image_std": [float(value) for value in processor["image_std"]],
    }


def tensor_names(layers: int) -> dict[str, str]:
    """Names in the file by those in the checkpoint, in the file's order."""
    pairs = dict(PAIRS)
    for index in range(layers):
        for source, target in LAYER.items():
            pairs[f"vision_tower.encoder.layers.{index}.{source}"] = f"v.blk.{index}.{target}"
    return OTHERS | {f"{a}.{kind}": f"{b}.{kind}" for a, b in pairs.items() for kind in ("weight", "bias")}


def plain(name: str) -> str:
    """A tensor's name without what versions of transformers have put in front of the tower's."""
    return name.removeprefix("model.").replace("vision_tower.vision_model.", "vision_tower.")


def stored_dtype(name: str, dimensions: int) -> np.dtype:
    """Of a tensor in the file."""
    return np.dtype(np.float32 if dimensions == 1 or name == LOOKED_UP else np.float16)


def as_bytes(pixels: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Normalised pixels [V, 3, H, W] -> the nearest of 8 bits [V, H, W, 3]."""
    levels = (pixels.transpose(0, 2, 3, 1) * std + mean) * 255
    return np.ascontiguousarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))


def write(checkpoint: Path, out: Path) -> None:
    """One tensor is held at a time; raises SystemExit when the checkpoint lacks one."""
    from gguf import GGUFWriter

    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text("utf-8"))
    values = settings(config, processor)
    writer = GGUFWriter(out, "clip")
    for key, value in values.items():
        _add(writer, key, value)
    files = {}
    for path in sorted(checkpoint.glob("*.safetensors")):
        file = safe_open(path, "numpy")
        files |= {plain(name): (file, name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    names = tensor_names(layers_read(config))
    if missing := names.keys() - files.keys():
        raise SystemExit(f"{checkpoint} lacks {', '.join(sorted(missing))}")
    for source, target in names.items():
        file, name = files[source]
        shape = file.get_slice(name).get_shape()
        dtype = stored_dtype(target, len(shape))
        writer.add_tensor_info(target, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for source, target in names.items():
        file, name = files[source]
        tensor = file.get_tensor(name)
        writer.write_tensor_data(tensor.astype(stored_dtype(target, tensor.ndim), copy=False))
    writer.close()


def _add(writer: GGUFWriter, key: str, value: Setting) -> None:
    # bool before int, which it is too
    kinds = ((bool, writer.add_bool), (int, writer.add_uint32), (float, writer.add_float32), (str, writer.add_string))
    add = next((add for kind, add in kinds if isinstance(value, kind)), writer.add_array)
    add(key, value)


def main(checkpoint: str, out: str) -> None:
    target = Path(out)
    partial = target.with_suffix(".partial")
    try:
        write(Path(checkpoint), partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
