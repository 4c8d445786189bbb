"""A checkpoint's tensors under the names that an older transformers reads.

transformers 5.24 saves a LLaVA's tower as model.vision_tower.*; 5.5, which optimum-intel 2.2 asks for, looks for
model.vision_tower.vision_model.* and leaves what it does not find at random without stopping.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

NEW, OLD = "model.vision_tower.", "model.vision_tower.vision_model."
LENGTH_BYTES = 8
"""Of the header's length at the start of a safetensors file."""


def renamed(name: str) -> str:
    """A tensor's older name; one that has it already keeps it."""
    return name if name.startswith(OLD) or not name.startswith(NEW) else OLD + name.removeprefix(NEW)


def write_renamed(checkpoint: Path, folder: Path) -> None:
    """Copy a checkpoint of safetensors to a new folder, its tower under the older names; the data are as they were."""
    folder.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix == ".safetensors":
            _copy_renamed(file, folder / file.name)
        elif file.name.endswith(".safetensors.index.json"):
            index = json.loads(file.read_text("utf-8"))
            index["weight_map"] = {renamed(name): where for name, where in index["weight_map"].items()}
            (folder / file.name).write_text(json.dumps(index), "utf-8")
        elif file.is_file():
            shutil.copyfile(file, folder / file.name)


def _copy_renamed(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        header = json.loads(read.read(int.from_bytes(read.read(LENGTH_BYTES), "little")))
        text = json.dumps({renamed(name): value for name, value in header.items()}).encode()
        text += b" " * (-len(text) % LENGTH_BYTES)
        write.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
        shutil.copyfileobj(read, write)
