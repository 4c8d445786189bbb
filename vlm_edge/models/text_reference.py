"""What transformers makes of given input embeddings, one decoder layer in memory at a time: the reference for a decoder graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from vlm_edge.core.checkpoint import Checkpoint
from vlm_edge.core.contracts import Floats, Positions
from vlm_edge.models.layouts import find_layout, path_of
from vlm_edge.models.weights import empty_model, filled_in_turn, load_parts, pieces


def embedding_scale(checkpoint: Checkpoint) -> float:
    """What the decoder's class multiplies rows of its table with before the first layer: sqrt(hidden) for Gemma, else 1."""
    table = empty_model(checkpoint, dtype=torch.float32).get_input_embeddings()
    return float(getattr(table, "scalar_embed_scale", 1.0))


def reference_logits(
    checkpoint: Checkpoint,
    embeds: Floats,
    *,
    prompt: int,
    positions: Positions | None = None,
    bidirectional_prefix: bool = False,
    on_layer: Callable[[int, Floats], None] | None = None,
) -> Floats:
    """Logits fp32 [N, L - prompt + 1, V] at the prompt's last position and each one after it, in fp32.

    embeds: [N, L, D], as the first layer reads them.  positions: [N, 3, L] for three-part rotary positions.
    bidirectional_prefix: the prompt attends in both directions, what follows to what came before it; the model's own class
    makes the mask.  on_layer: is given each layer's number and the hidden states [N, L, D] behind it, which are not kept here.
    Attention is transformers' eager one, the only one that knows every architecture's soft caps.
    Memory: one layer in fp32, PIECE_BYTES of the head, the activations of N x L tokens; time: every weight is read once.
    Raises BadInput as models.weights does.
    """
    whole = empty_model(checkpoint, dtype=torch.float32, attention="eager")
    decoder, head = path_of(whole, whole.get_decoder()), path_of(whole, whole.get_output_embeddings())
    whole = load_parts(checkpoint, (f"{decoder}.norm",), dtype=torch.float32, attention="eager")
    language = whole.get_submodule(decoder)
    config = language.config
    language.rotary_emb = type(language.rotary_emb)(config=config)
    layers = [f"{decoder}.layers.{index}" for index in range(len(language.layers))]
    options: dict[str, torch.Tensor] = {}
    if positions is not None:
        options["position_ids"] = torch.from_numpy(np.ascontiguousarray(positions.transpose(1, 0, 2)))
    if bidirectional_prefix:
        kinds = torch.ones(embeds.shape[:2], dtype=torch.long)
        kinds[:, :prompt] = 0
        options["token_type_ids"] = kinds
    reader = whole.model if bidirectional_prefix else language
    with torch.no_grad(), filled_in_turn(whole, checkpoint, layers), _watched(language.layers, on_layer):
        hidden = reader(inputs_embeds=torch.from_numpy(embeds), use_cache=False, **options).last_hidden_state
        last = hidden[:, prompt - 1 :]
        logits = torch.cat([last @ rows.T for rows in _head_rows(whole, checkpoint, head)], dim=-1)
        cap = getattr(config, "final_logit_softcapping", None)
        if cap:
            logits = torch.tanh(logits / cap) * cap
    found: Floats = logits.numpy()
    return found


@contextmanager
def _watched(layers: Sequence[nn.Module], on_layer: Callable[[int, Floats], None] | None) -> Iterator[None]:
    def tell(index: int, output: Any) -> None:
        if on_layer is not None:
            on_layer(index, (output[0] if isinstance(output, tuple) else output).numpy())

    hooks = [layer.register_forward_hook(lambda *given, i=i: tell(i, given[-1])) for i, layer in enumerate(layers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _head_rows(whole: nn.Module, checkpoint: Checkpoint, head: str) -> Iterator[torch.Tensor]:
    """The head's weight [V, D], or the embedding's that it shares, a few rows at a time."""
    name = f"{head}.weight"
    layout = find_layout(whole, checkpoint, (head,))
    return pieces(layout.sources[layout.require([name])[name]].tensors[0])
