"""The decode loop's engine: a decoder graph with its KV cache bound in place."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vlm_edge.backends.onnx.session import import_runtime, open_session
from vlm_edge.core.contracts import Floats
from vlm_edge.core.specs import TextSpec
from vlm_edge.errors import BadInput, DamagedBundle
from vlm_edge.memory.plan import PREFILL_CHUNK

_NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class OnnxEngine:
    """One sequence through a decoder built by onnxruntime-genai's builder (inputs_embeds in, last logits out).

    Past and present share one buffer per layer, [1, kv_heads, context, head_dim], so no step copies the cache. A prompt is
    prefilled in chunks of PREFILL_CHUNK positions, which bounds the activations.  Raises DamagedBundle for a graph that is
    not the decoder that `text` describes.
    """

    def __init__(self, graph: Path, text: TextSpec, *, target: str, threads: int, context: int) -> None:
        runtime = import_runtime()
        self._session = open_session(graph, target=target, threads=threads)
        self._context = context
        self._length = 0
        self._device = "cuda" if target == "cuda" else "cpu"
        self._binding = self._session.io_binding()
        inputs = {value.name: value.type for value in self._session.get_inputs()}
        if "inputs_embeds" not in inputs:
            raise DamagedBundle(f"{graph} is not a decoder that takes inputs_embeds", remedy="export the decoder again")
        past = [f"past_key_values.{layer}.{part}" for layer in range(text.layers) for part in ("key", "value")]
        shape = (1, text.kv_heads, context, text.head_dim)
        self._session.check_shapes(
            {
                "inputs_embeds": (None, None, text.hidden),
                "attention_mask": (None, None),
                "logits": (None, None, text.vocab),
            }
            | dict.fromkeys((*past, *map(_present, past)), (None, text.kv_heads, None, text.head_dim))
        )
        others = {*inputs} - {"inputs_embeds", "attention_mask", *past}
        types = {inputs[name] for name in ("inputs_embeds", *past)} - {*_NUMPY_TYPES}
        if others or types:
            what = f"takes {min(others)} too" if others else f"takes {min(types)}"
            raise DamagedBundle(f"{graph} {what}, which no decoder here is given", remedy="export the decoder again")
        self._float = _NUMPY_TYPES[inputs["inputs_embeds"]]
        self._ones = np.ones((1, context), np.int64)
        self._cache = []
        for name in past:
            empty = np.zeros(shape, _NUMPY_TYPES[inputs[name]])
            buffer = runtime.OrtValue.ortvalue_from_numpy(empty, self._device, 0)
            self._cache.append((name, _present(name), buffer))

    @property
    def length(self) -> int:
        """Positions in the cache."""
        return self._length

    def rewind(self, length: int) -> None:
        """Forget everything after the first `length` positions; costs nothing, the buffer is overwritten."""
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot rewind from {self._length} to {length}")
        self._length = length

    def forward(self, embeds: Floats) -> Floats:
        """Append [L, D] and return the last position's logits [V]; raises BadInput past the context."""
        if self._length + len(embeds) > self._context:
            raise BadInput(
                f"{self._length + len(embeds)} tokens exceed the context of {self._context}",
                remedy="ask a shorter question, or allow fewer tiles (--max-tiles) or new tokens (--max-new-tokens)",
            )
        logits = np.empty(0, np.float32)
        for start in range(0, len(embeds), PREFILL_CHUNK):
            logits = self._step(embeds[start : start + PREFILL_CHUNK])
        return logits

    def _step(self, embeds: Floats) -> Floats:
        total = self._length + len(embeds)
        binding = self._binding
        binding.bind_cpu_input("inputs_embeds", np.ascontiguousarray(embeds[None], self._float))
        binding.bind_cpu_input("attention_mask", self._ones[:, :total])
        for past, present, buffer in self._cache:
            binding.bind_ortvalue_input(past, buffer)
            binding.bind_ortvalue_output(present, buffer)
        binding.bind_output("logits", "cpu")
        self._session.run_with_iobinding(binding)
        self._length = total
        logits: Floats = binding.get_outputs()[-1].numpy()[0, -1].astype(np.float32, copy=False)
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        return logits


def _present(past: str) -> str:
    """The output that follows an input of the cache."""
    return past.replace("past_key_values.", "present.")
