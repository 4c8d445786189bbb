"""The decode loop's engine: a decoder graph with its KV cache bound in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlm_edge.backends.onnx.session import Graph, import_runtime, open_session
from vlm_edge.core.contracts import Floats, Positions
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.memory.plan import PREFILL_CHUNK

_FLOATS: dict[str, type[np.generic]] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_CACHES: dict[str, type[np.generic]] = {**_FLOATS, "tensor(int8)": np.int8, "tensor(uint8)": np.uint8}
_PACKED = "tensor(uint8)"
"""Two 4-bit values in a byte."""
_POSITIONS = "position_ids"


class OnnxEngine:
    """One sequence through a decoder built by onnxruntime-genai's builder (inputs_embeds in, last logits out).

    Past and present share one buffer per layer, [1, kv_heads, context, head_dim], so no step copies the cache; its type, the
    embeddings' and the logits' are the graph's, fp32 or fp16, and a cache may be int8 or int4 too (two values in a byte). These
    buffers are bound once: to bind dozens of them again took longer than all else that a step does around the graph. A prompt is
    prefilled in chunks of PREFILL_CHUNK positions, which bounds the activations; not so where a prefix attends in both
    directions: no part of it can be read without the rest.
    mapped: as in open_session.
    Raises DamagedBundle for a graph that is not the decoder that `text` describes, or that takes what is not fed here.
    """

    def __init__(
        self, graph: Path, text: TextSpec, *, target: str, threads: int, context: int, mapped: bool = False
    ) -> None:
        runtime = import_runtime()
        self._session = open_session(graph, target=target, threads=threads, mapped=mapped)
        self._text = text
        self._context = context
        self._length = 0
        self._prefix = 0
        self._binding = self._session.io_binding()
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        outputs = {value.name: value.type for value in self._session.get_outputs()}
        past = [f"past_key_values.{layer}.{part}" for layer in range(text.layers) for part in ("key", "value")]
        _check_graph(self._session, graph, text, inputs, past)
        self._float = _FLOATS[inputs["inputs_embeds"]]
        self._ones = np.ones((1, context), np.int64)
        device = "cuda" if target == "cuda" else "cpu"
        self._cache = []
        for name in past:
            empty = np.zeros((1, text.kv_heads, context, _width(text, inputs[name])), _CACHES[inputs[name]])
            buffer = runtime.OrtValue.ortvalue_from_numpy(empty, device, 0)
            self._cache.append(buffer)
            self._binding.bind_ortvalue_input(name, buffer)
            self._binding.bind_ortvalue_output(_present(name), buffer)
        self._logits = np.empty((1, 1, text.vocab), _FLOATS[outputs["logits"]])
        self._binding.bind_ortvalue_output("logits", runtime.OrtValue.ortvalue_from_numpy(self._logits, "cpu", 0))

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._length

    def cached(self) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        """Keys and values [1, kv_heads, length, head_dim] of every layer, as the graph keeps them."""
        arrays = [buffer.numpy()[:, :, : self._length] for buffer in self._cache]
        return zip(arrays[0::2], arrays[1::2], strict=True)

    def rewind(self, length: int) -> None:
        """Forget everything after the first `length` positions; costs nothing, the buffer is overwritten.

        Raises ValueError for a length that was never reached, and for one inside a prefix that attends in both directions.
        """
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot rewind from {self._length} to {length}")
        if 0 < length < self._prefix:
            raise ValueError(f"cannot rewind to {length}: the prefix of {self._prefix} was read as a whole")
        self._length = length

    def forward(self, embeds: Floats, positions: Positions | None = None) -> Floats:
        """Append [L, D] and return the last position's logits [V]; LlmEngine says what embeds and positions are.

        Raises BadInput past the context, ValueError for what the contract rules out; the cache is then as it was.
        """
        self._check_input(embeds, positions)
        logits = np.empty(0, np.float32)
        if self._text.bidirectional_prefix and self._length == 0:
            self._prefix = len(embeds)
        chunk = PREFILL_CHUNK if not self._text.bidirectional_prefix else max(1, len(embeds))
        for start in range(0, len(embeds), chunk):
            part = slice(start, start + chunk)
            logits = self._step(embeds[part], None if positions is None else positions[:, part])
        return logits

    def _check_input(self, embeds: Floats, positions: Positions | None) -> None:
        text, total = self._text, self._length + len(embeds)
        if (positions is None) == bool(text.mrope_sections):
            raise ValueError(f"this decoder takes {'three-part' if text.mrope_sections else 'no'} positions")
        if positions is not None:
            if positions.shape != (3, len(embeds)):
                raise ValueError(f"positions have the shape {positions.shape}, not {(3, len(embeds))}")
            if positions.size and not 0 <= positions.min() <= positions.max() < text.max_positions:
                raise ValueError(f"positions must lie within 0 and {text.max_positions - 1}")
        if total > self._context:
            raise BadInput(
                f"{total} tokens exceed the context of {self._context}",
                remedy="ask a shorter question, or allow fewer tiles (--max-tiles) or new tokens (--max-new-tokens)",
            )
        if not text.bidirectional_prefix:
            return
        if self._length and len(embeds) > 1:
            raise ValueError("a prompt that attends in both directions is read in one call, at length 0")
        if text.sliding_layers and total > text.sliding_window:
            # ONNX Runtime's attention has a window or both directions, not the two at once.
            raise BadInput(
                f"{total} tokens exceed this decoder's sliding window of {text.sliding_window}",
                remedy="ask a shorter question, or allow fewer new tokens (--max-new-tokens)",
            )

    def _step(self, embeds: Floats, positions: Positions | None) -> Floats:
        total = self._length + len(embeds)
        binding = self._binding
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds[None], self._float))
        binding.bind_cpu_input("attention_mask", self._ones[:, :total])
        if positions is not None:
            binding.bind_cpu_input(_POSITIONS, np.ascontiguousarray(positions[:, None], np.int64))
        self._session.run_with_iobinding(binding)
        self._length = total
        # A copy: the buffer is the next step's too.
        logits: Floats = self._logits[0, -1].astype(np.float32)
        return logits


def _check_graph(session: Graph, graph: Path, text: TextSpec, inputs: dict[str, str], past: list[str]) -> None:
    logits = next((value.type for value in session.get_outputs() if value.name == "logits"), "")
    if "inputs_embeds" not in inputs:
        raise DamagedBundle(f"{graph} is not a decoder that takes inputs_embeds", remedy="export the decoder again")
    positions: dict[str, tuple[int | None, ...]] = {_POSITIONS: (3, None, None)} if text.mrope_sections else {}
    session.check_shapes(
        {
            "inputs_embeds": (None, None, text.hidden),
            "attention_mask": (None, None),
            "logits": (None, 1, text.vocab),
        }
        | positions
        | {
            name: (None, text.kv_heads, None, _width(text, inputs.get(which, "")))
            for which in past
            for name in (which, _present(which))
        }
    )
    others = {*inputs} - {"inputs_embeds", "attention_mask", *positions, *past}
    types = ({inputs["inputs_embeds"], logits} - {*_FLOATS}) | ({inputs[name] for name in past} - {*_CACHES})
    if others or types:
        what = f"takes {min(others)} too" if others else f"takes or gives {min(types)}"
        raise DamagedBundle(f"{graph} {what}, unlike every decoder here", remedy="export the decoder again")


def _width(text: TextSpec, kind: str) -> int:
    """Elements of the cache for one position of one head."""
    return text.head_dim // 2 if kind == _PACKED else text.head_dim


def _present(past: str) -> str:
    """The output that follows an input of the cache."""
    return past.replace("past_key_values.", "present.")
