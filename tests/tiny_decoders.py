"""Tiny random checkpoints whose decoders ONNX Runtime can run, and the builder without the start of a process for each.

Odd sizes: five layers, three queries a key, heads that are no share of the hidden size, a vocabulary that no layer has.
"""

from __future__ import annotations

import contextlib
import io
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import exportable, tiny_vlms
from vlm_edge.backends.onnx import decoder
from vlm_edge.core import discover
from vlm_edge.core.specs import TextSpec

HEAD_DIM, WINDOW = 16, 24
TEXT = {
    **tiny_vlms.TEXT, "vocab_size": 99, "num_hidden_layers": 5, "head_dim": HEAD_DIM, "max_position_embeddings": 256,
}  # fmt: skip
MROPE = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}
_QWEN_VL = {"hidden_size": 96, "head_dim": None, "rope_parameters": MROPE}
"""The heads of these are a share of the hidden size."""
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 3},
    "qwen3": {},
    "gemma": {},
    "gemma2": {"sliding_window": WINDOW, "query_pre_attn_scalar": 20},
    "qwen2_vl_text": _QWEN_VL,
    "qwen2_5_vl_text": _QWEN_VL,
}
"""Decoders by model type, with what they have beside TEXT."""


def vlm(family: str, kind: str = "", *, tied: bool = False, seed: int = 0, **text: Any) -> Any:
    """A family's tiny model with one of these decoders; kind: its own kind by default."""
    config = deepcopy(tiny_vlms.FAMILIES[family].model().config)
    own = config.text_config.model_type
    kind = kind or own
    sizes = {**TEXT, **KINDS.get(kind, {}), **text, "tie_word_embeddings": tied}
    config.text_config = transformers.AutoConfig.for_model(kind, **sizes)
    config.tie_word_embeddings = tied
    if "out_hidden_size" in config.vision_config.to_dict():
        config.vision_config.out_hidden_size = config.text_config.hidden_size
    elif family == "qwen2_vl":
        config.vision_config.hidden_size = config.text_config.hidden_size
    model = transformers.AutoModelForImageTextToText._model_mapping[type(config)](config)
    return tiny_vlms.randomized(model, seed)


@contextlib.contextmanager
def builder_in_process() -> Iterator[None]:
    """Run the builder's own main program in this process: its imports take seconds, and a second time nothing."""
    real = subprocess.run

    def run(command: Sequence[str], **options: Any) -> Any:
        if list(command[1:3]) != ["-m", "onnxruntime_genai.models.builder"]:
            return real(command, **options)
        said = io.StringIO()
        code = 0
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(sys, "argv", ["builder", *command[3:]])
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                try:
                    runpy.run_module(command[2], run_name="__main__", alter_sys=True)
                except SystemExit as stop:
                    code = int(stop.code or 0)
                except Exception:  # noqa: BLE001  # whatever ends the process that this stands for
                    traceback.print_exc()
                    code = 1
        return subprocess.CompletedProcess(command, code, "", said.getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoder.subprocess, "run", run)
        yield


def spec(family: str, kind: str = "", **options: Any) -> TextSpec:
    """Such a decoder's sizes."""
    config = vlm(family, kind, **options).config.to_dict()
    return discover.family_of(config).spec(config).text


def save(family: str, folder: Path, kind: str = "", **options: Any) -> Any:
    """Write such a model and what an export reads beside it; returns the model."""
    model = vlm(family, kind, **options)
    return exportable.save_model(family, model, folder)


def embeddings(length: int, hidden: int = TEXT["hidden_size"], seed: int = 0) -> torch.Tensor:
    """Made-up input embeddings [1, L, D]."""
    return torch.randn(1, length, hidden, generator=torch.Generator().manual_seed(seed))
