"""A LLaVA checkpoint in transformers: python -m benchmarks.peers.torch_chain CHECKPOINT THREADS fp32|bf16"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from benchmarks.peers.chain import Asked, Parts, prompt, serve, step_times
from benchmarks.peers.decoding import Facts

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TorchChain:
    """One model for the chain and for its parts."""

    def __init__(self, checkpoint: Path, dtype: torch.dtype) -> None:
        self._model = transformers.AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=dtype).eval()
        self._dtype = dtype
        settings = json.loads((checkpoint / "preprocessor_config.json").read_text())
        self._processor = CLIPImageProcessorPil(**settings)
        self._tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
        config = self._model.config
        self._image_tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2

    def ask(self, image: str, new: int) -> Asked:
        ends: list[float] = []

        def known(_ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            ends.append(time.perf_counter())
            return logits

        started = time.perf_counter()
        pixels = self._processor(images=Image.open(image).convert("RGB"), return_tensors="pt")["pixel_values"]
        place = self._model.config.image_token_id
        ids = self._tokenizer.encode(prompt("<image>\n")).ids
        at = ids.index(place)
        whole = torch.tensor([[*ids[:at], *[place] * self._image_tokens, *ids[at + 1 :]]])
        with torch.inference_mode():
            self._model.generate(
                input_ids=whole, attention_mask=torch.ones_like(whole), pixel_values=pixels.to(self._dtype),
                max_new_tokens=new, min_new_tokens=new, do_sample=False, logits_processor=[known], pad_token_id=0,
            )  # fmt: skip
        return step_times(started, ends, whole.shape[1])

    def parts(self) -> Parts:
        decoder = TorchDecoder(self._model)
        return Parts(self._facts(), decoder, NAMES[self._dtype], self._encode)

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found = self._model.get_image_features(torch.from_numpy(pixels).to(self._dtype)).pooler_output
            return torch.stack(list(found)).float().numpy()

    def _facts(self) -> Facts:
        text, name = self._model.config.text_config, NAMES[self._dtype]
        table = self._model.get_input_embeddings().weight
        decoder = [*self._model.get_decoder().parameters(), *self._model.lm_head.parameters()]
        return Facts(
            version=f"transformers {transformers.__version__}, torch {torch.__version__}", weights=name, head=name, cache=name,
            activations=name, vocabulary=text.vocab_size,
            read_bytes=sum(each.nbytes for each in decoder if each is not table),
            position_bytes=2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self._dtype.itemsize,
        )  # fmt: skip


class TorchDecoder:
    """The text model with a growing cache."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.reset()

    def reset(self) -> None:
        self._cache = transformers.DynamicCache(config=self._model.config.text_config)

    def forward(self, ids: Sequence[int]) -> np.ndarray:
        with torch.inference_mode():
            out = self._model(input_ids=torch.tensor([ids]), cache=self._cache, use_cache=True, logits_to_keep=1)
        return out.logits[0, -1].float().numpy()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    serve(TorchChain(Path(sys.argv[1]), DTYPES[sys.argv[3]]))
