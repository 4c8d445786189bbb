"""A Hugging Face checkpoint folder: its configuration and an index of its tensors. No tensor's data is read here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple

from vlm_edge.core.load import read_text
from vlm_edge.core.shards import AGAIN, TensorRef, read_header, shown, strict_json
from vlm_edge.errors import BadInput

CONFIG = "config.json"
PREPROCESSOR = "preprocessor_config.json"
PROCESSOR = "processor_config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_NAMED = 5


class Foreign(NamedTuple):
    """Weights that are not read: files that match `pattern` are `what`; `remedy` says how to get what is read."""

    pattern: str
    what: str
    remedy: str


_ORIGINAL = "give the original Hugging Face checkpoint, with config.json and model.safetensors"
FOREIGN = (
    Foreign("adapter_model.safetensors", "only a LoRA adapter", "merge it into its base model and save that"),
    Foreign("model-*.safetensors", f"shards without {INDEX}", f"download {INDEX} too"),
    Foreign(
        "*.safetensors",
        f"no {SINGLE} and no {INDEX}, only safetensors files under other names",
        "save the model with transformers' save_pretrained",
    ),
    Foreign("*.gguf", "a GGUF file of llama.cpp", _ORIGINAL),
    *(
        Foreign(
            pattern,
            "a pickle, which can run code when it is opened",
            "where you trust the file, load it with transformers' from_pretrained and write it again with "
            "save_pretrained(FOLDER, safe_serialization=True)",
        )
        for pattern in ("*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt")
    ),
    Foreign("*.h5", "TensorFlow weights", _ORIGINAL),
    Foreign("*.msgpack", "Flax weights", _ORIGINAL),
    Foreign("*.onnx", "ONNX graphs", _ORIGINAL),
)
"""Tried in this order when a folder has neither model.safetensors nor its index."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose config.json and safetensors headers were read and agree with its files.

    tensors: by the name that the files use; transformers 4 and 5 name them differently.
    """

    root: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]

    def json(self, name: str) -> dict[str, Any]:
        """A JSON object beside the weights, such as preprocessor_config.json; raises BadInput, also where it is missing."""
        return _read_object(self.root, name)

    def optional_json(self, name: str) -> dict[str, Any] | None:
        """The same, or None where there is no such file."""
        return _read_object(self.root, name) if _is_file(self.root / name) else None


def open_checkpoint(root: Path) -> Checkpoint:
    """Read config.json, the index and every shard's header, and check them against each other and the files' sizes.

    root: a local folder.  Raises BadInput for whatever is missing, damaged, in another format, or needs code of its own.
    """
    if not _answer(root.is_dir):
        raise BadInput(f"checkpoint {shown(str(root))} is not a folder", remedy=f"name the folder that holds {CONFIG}")
    has_weights = _is_file(root / SINGLE) or _is_file(root / INDEX)
    if not has_weights:
        _refuse_foreign(root)
    config = read_config(root)
    if not has_weights:
        raise BadInput(f"checkpoint {root} has no weights", remedy=f"download {SINGLE}, or {INDEX} and its shards")
    # The order in which transformers looks for them.
    tensors = read_header(root / SINGLE) if _is_file(root / SINGLE) else _read_sharded(root)
    if not tensors:
        raise BadInput(f"checkpoint {root} has weights without a tensor", remedy=AGAIN)
    return Checkpoint(root, MappingProxyType(config), MappingProxyType(tensors))


def read_config(root: Path) -> dict[str, Any]:
    """config.json alone; raises BadInput where it is missing or damaged, or asks for Python code of its own."""
    config = _read_object(root, CONFIG)
    _refuse_remote_code(root, config)
    return config


def find_preprocessor(root: Path) -> dict[str, Any] | None:
    """preprocessor_config.json, else what newer checkpoints have of it inside processor_config.json; None without either.

    Raises BadInput for a file that is damaged.
    """
    if _is_file(root / PREPROCESSOR):
        return _read_object(root, PREPROCESSOR)
    inner = _read_object(root, PROCESSOR).get("image_processor") if _is_file(root / PROCESSOR) else None
    return inner if isinstance(inner, dict) else None


def shard_names(root: Path) -> list[str]:
    """The files that the index lists, ordered; raises BadInput for an index that is damaged or leaves the folder."""
    return sorted(set(_weight_map(root).values()))


def _is_file(path: Path) -> bool:
    return _answer(path.is_file)


def _answer(question: Callable[[], bool]) -> bool:
    """No, too, for a name too long for the file system or in a folder that may not be entered."""
    try:
        return question()
    except OSError:
        return False


def _refuse_foreign(root: Path) -> None:
    try:
        for kind in FOREIGN:
            if found := sorted(path.name for path in root.glob(kind.pattern)):
                raise BadInput(f"checkpoint {root} has {kind.what} ({shown(found[0])})", remedy=kind.remedy)
    except OSError as cause:
        raise BadInput(f"checkpoint {root} cannot be read: {cause}", remedy="check its permissions") from cause


def _read_object(root: Path, name: str) -> dict[str, Any]:
    path = root / name
    if not _is_file(path):
        raise BadInput(
            f"checkpoint {root} has no {name}", remedy="name a Hugging Face checkpoint folder; download all of it"
        )
    found = strict_json(read_text(path), str(path))
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no JSON object", remedy=AGAIN)
    return found


def _refuse_remote_code(root: Path, config: Mapping[str, Any]) -> None:
    if config.get("auto_map"):
        raise BadInput(
            f"checkpoint {root} needs Python code of its own (auto_map in {CONFIG}), and none from a checkpoint is run",
            remedy="use the version made for transformers' own classes, often named ...-hf",
        )


def _read_sharded(root: Path) -> dict[str, TensorRef]:
    weight_map = _weight_map(root)
    files = sorted(set(weight_map.values()))
    if missing := [file for file in files if not _is_file(root / file)]:
        raise BadInput(f"checkpoint {root} lacks {listed(missing, 'shard')}", remedy="download what is missing")
    headers = {file: read_header(root / file) for file in files}
    if astray := [name for name, file in weight_map.items() if name not in headers[file]]:
        file = weight_map[astray[0]]
        raise BadInput(
            f"{INDEX} of {root} promises {listed(astray, 'tensor')} that the shard ({shown(file)}) lacks", remedy=AGAIN
        )
    return {name: headers[file][name] for name, file in weight_map.items()}


def _weight_map(root: Path) -> dict[str, str]:
    weight_map = _read_object(root, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise BadInput(f"{root / INDEX} has no weight_map from tensors to files", remedy=AGAIN)
    for file in sorted(set(weight_map.values())):
        _check_name(root, file)
    return weight_map


def _check_name(root: Path, file: str) -> None:
    """Only the name is judged: in the hub's cache the file itself is a link to another folder."""
    name = PurePosixPath(file)
    if name.is_absolute() or ".." in name.parts or not name.parts or {"\\", "\0", ":"} & {*file}:
        raise BadInput(
            f"{root / INDEX} names a file outside the checkpoint: {shown(file)}", remedy="do not use this checkpoint"
        )


def listed(names: list[str], what: str) -> str:
    """`2 tensors: 'a', 'b'`, at most five of them named."""
    rest = ", ..." if len(names) > MAX_NAMED else ""
    plural = "" if len(names) == 1 else "s"
    return f"{len(names)} {what}{plural}: {', '.join(shown(name) for name in names[:MAX_NAMED])}{rest}"
