"""A training checkpoint -> the Hugging Face folder that ships, and from there the embedded bundle.

python -m recipes.nano.checkpoint save TRAINED.pt recipes/nano/checkpoint
python -m recipes.nano.checkpoint bundle recipes/nano/checkpoint vlm_edge/nano
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vlm_edge.core.load import load_file
from vlm_edge.core.recipe import Packing, Recipe
from vlm_edge.pipeline.building.nano_bundle import build_bundle

from .model import build_model
from .tokenizer import ANSWER, BOS, EOS, IMAGE, PAD, QUESTION, UNK, build_tokenizer

ROOT = Path(__file__).parents[2]
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% for part in message.content %}"
    "{% if part.type == 'image' %}" + IMAGE + "{% else %}"
    "{% if message.role == 'user' %}"
    + QUESTION
    + "{{ part.text }}"
    + ANSWER
    + "{% else %}{{ part.text }}{{ eos_token }}{% endif %}"
    "{% endif %}{% endfor %}{% endfor %}"
)


def save(trained: Path, out: Path) -> None:
    """Round the weights to fp16 and write config, tokenizer, processor settings and chat template beside them."""
    model = build_model()
    model.load_state_dict(torch.load(trained)["model"])
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)
    tokenizer = build_tokenizer()
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD, "unk_token": UNK}
    _write(
        out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1024, **names}
    )
    ids = {
        f"{name}_token_id": tokenizer.token_to_id(token) for name, token in (("bos", BOS), ("eos", EOS), ("pad", PAD))
    }
    _write(out / "generation_config.json", {"_from_model_config": False, **ids})
    _write(
        out / "preprocessor_config.json",
        {
            "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"height": 112, "width": 112},
            "resample": 3, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_convert_rgb": True,
        },
    )  # fmt: skip
    (out / "chat_template.jinja").write_text(TEMPLATE)


def bundle(checkpoint: Path, out: Path, llm: str | None = None) -> None:
    """Pack a saved checkpoint as recipes/nano.yaml says; `llm` overrides the decoder's precision."""
    recipe = load_file(ROOT / "recipes/nano.yaml", Recipe)
    if llm is not None:
        recipe = Recipe(
            **{**recipe.__dict__, "packing": Packing(llm=llm, vision=recipe.packing.vision), "name": f"nano-{llm}"}
        )
    pages = sorted((ROOT / "calibration/pages").glob("*.png"))
    images = [np.asarray(Image.open(page).convert("RGB")) for page in pages]
    built = build_bundle(checkpoint, out, recipe, images=images)
    for result in built.manifest.parity:
        print(f"{result.component}: {result.metric} {result.value:.2e} (limit {result.limit:.0e})")
    print(f"{out}: {sum(a.bytes for a in built.manifest.artifacts) / 2**20:.1f} MiB")


def _write(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("save", "bundle"):
        command = commands.add_parser(name)
        command.add_argument("source", type=Path)
        command.add_argument("out", type=Path)
    commands.choices["bundle"].add_argument("--llm", choices=["int4", "fp32"])
    arguments = parser.parse_args()
    if arguments.command == "save":
        save(arguments.source, arguments.out)
    else:
        bundle(arguments.source, arguments.out, arguments.llm)
