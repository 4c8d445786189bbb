"""The decoder of a checkpoint, one layer at a time, run by transformers' own classes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from vlm_edge.core.checkpoint import Checkpoint, listed
from vlm_edge.core.shards import TensorRef
from vlm_edge.errors import BadInput
from vlm_edge.models.layouts import Layout, find_layout, path_of
from vlm_edge.models.weights import UNQUANTIZED, empty_model, fill, pieces, read, rows_of
from vlm_edge.quant.sequences import Placement


class StreamedDecoder:
    """A checkpoint's decoder layers, read from its shards when they are asked for; never two of them at once.

    Serves vision-language checkpoints and plain language models.  Raises BadInput for a checkpoint that is quantized or does not
    fit its config.json.
    """

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        if checkpoint.config.get("quantization_config"):
            raise BadInput(f"checkpoint {checkpoint.root} is already quantized", remedy=UNQUANTIZED)
        self.device = torch.device(device)
        self._model = empty_model(checkpoint, dtype=torch.float32, text_only=True)
        decoder, head = self._model.get_decoder(), self._model.get_output_embeddings()
        self.path, self.head_path = path_of(self._model, decoder), path_of(self._model, head)
        self._layout = find_layout(self._model, checkpoint, (self.path, self.head_path))
        self.config = self._model.config.get_text_config(decoder=True)
        self.kind: str = self.config.model_type
        self.count = len(decoder.layers)
        self.width: int = self.config.hidden_size
        self._filled: str | None = None
        self._caller = self._recorders(checkpoint)
        self._embedding = self._stored(f"{path_of(self._model, self._model.get_input_embeddings())}.weight")

    def _recorders(self, checkpoint: Checkpoint) -> Any:
        """The decoder's own forward around layers that only remember how they are called."""
        model = empty_model(checkpoint, dtype=torch.float32, text_only=True)
        fill(model, self._layout, (f"{self.path}.norm", f"{self.path}.rotary_emb"))
        decoder = model.get_decoder()
        decoder.layers = nn.ModuleList(_Recorder() for _ in decoder.layers)
        for part in (decoder.norm, decoder.rotary_emb):
            part.to(self.device)
        return decoder

    def meta_layer(self, index: int) -> nn.Module:
        """A layer without weights, for its sizes."""
        return self._model.get_submodule(f"{self.path}.layers.{index}")

    def layer(self, index: int) -> nn.Module:
        """Layer `index` in float32; the one given before loses its weights."""
        self.forget()
        self._filled = f"{self.path}.layers.{index}"
        fill(self._model, self._layout, (self._filled,))
        return self._model.get_submodule(self._filled).to(self.device)

    def forget(self) -> None:
        """Drop the weights of the layer that was given last."""
        if self._filled is not None:
            self._model.get_submodule(self._filled).to("meta")
            self._filled = None

    def layer_of(self, index: int, parameters: Mapping[str, torch.Tensor]) -> nn.Module:
        """Layer `index` with these parameters in place of the checkpoint's; the layer given before loses its weights."""
        self.forget()
        self._filled = f"{self.path}.layers.{index}"
        layer = self._model.get_submodule(self._filled)
        layer.load_state_dict(dict(parameters), strict=True, assign=True)
        return layer.to(self.device)

    def arguments(self, index: int, placement: Placement) -> Mapping[str, Any]:
        """What layer `index` is called with beside the hidden states: masks and rotary positions as transformers makes them."""
        length = placement.length
        # Only its shape and type matter.
        states = torch.zeros(1, device=self.device).expand(1, length, self.width)
        positions = None if placement.positions is None else placement.positions[:, None].to(self.device)
        mask = _prefix_mask(length, placement.prefix, self.device) if placement.prefix else None
        with torch.no_grad():
            self._caller(inputs_embeds=states, position_ids=positions, attention_mask=mask, use_cache=False)
        named: Mapping[str, Any] = self._caller.layers[index].named
        return named

    def logits(self, states: torch.Tensor, head: Iterable[torch.Tensor] | None = None) -> torch.Tensor:
        """Hidden states behind the last layer [T, D] -> logits float32 [T, V]; the output table is read in pieces.

        head: other pieces of such a table, in place of the checkpoint's.
        """
        with torch.no_grad():
            normed = self._caller.norm(states.to(self.device))
            parts = [normed @ rows.to(self.device).t() for rows in (self.head() if head is None else head)]
            found = torch.cat(parts, dim=1)
            if (cap := getattr(self.config, "final_logit_softcapping", None)) is not None:
                found = torch.tanh(found / cap) * cap
        return found

    def head(self) -> Iterator[torch.Tensor]:
        """The output table [V, D] as the checkpoint stores it, float32, a few rows at a time."""
        return pieces(self._stored(f"{self.head_path}.weight"))

    @property
    def final_norm(self) -> torch.Tensor:
        """The final norm's weight [D] as the checkpoint stores it, float32."""
        weight: torch.Tensor = self._caller.norm.weight.data
        return weight

    @property
    def embedding_scale(self) -> float:
        """What rows of the table are multiplied with before the first layer."""
        return float(getattr(self._model.get_input_embeddings(), "scalar_embed_scale", 1.0))

    def embed(self, tokens: Sequence[int]) -> torch.Tensor:
        """Input embeddings float32 [T, D] as the model's own embedding layer gives them; only those rows are read.

        Raises BadInput for a token beyond the table.
        """
        rows = self._embedding.shape[0]
        if astray := [token for token in tokens if not 0 <= token < rows]:
            raise BadInput(
                f"token {astray[0]} is beyond the embedding table's {rows} rows",
                remedy="use the tokenizer.json of this checkpoint",
            )
        kinds = sorted(set(tokens))
        table = torch.stack([read(rows_of(self._embedding, token, 1), torch.float32)[0] for token in kinds])
        places = {token: place for place, token in enumerate(kinds)}
        return table[[places[token] for token in tokens]] * self.embedding_scale

    @property
    def embedding(self) -> TensorRef:
        """The input embeddings as the checkpoint stores them."""
        return self._embedding

    def stored(self) -> dict[str, TensorRef]:
        """What the checkpoint calls each parameter of the decoder and the head, by the class's name."""
        names = [name for name in self._layout.expected if name in self._layout.sources]
        return {name: self._stored(name) for name in names}

    def _stored(self, name: str) -> TensorRef:
        source = self._layout.sources[self._layout.require([name])[name]]
        if source.converter is not None:
            raise BadInput(
                f"checkpoint {self._layout.root} stores {name} in another form "
                f"({listed([tensor.name for tensor in source.tensors], 'tensor')})",
                remedy="load it with transformers' from_pretrained and save it again",
            )
        return source.tensors[0]

    @property
    def layout(self) -> Layout:
        """Which stored tensor is which parameter."""
        return self._layout


class _Recorder(nn.Module):  # type: ignore[misc]  # torch is not followed by mypy
    """Stands in for a decoder layer: remembers how it was called and passes the states on."""

    named: Mapping[str, Any]

    def forward(self, hidden_states: torch.Tensor, **named: Any) -> torch.Tensor:
        self.named = {name: value for name, value in named.items() if value is not None or name == "attention_mask"}
        return hidden_states


def _prefix_mask(length: int, prefix: int, device: torch.device) -> torch.Tensor:
    """[1, 1, L, L], 0 where a token may look: at all of the prefix if it is in it, and at what is before it."""
    places = torch.arange(length, device=device)
    seen = (places[None] <= places[:, None]) | ((places[None] < prefix) & (places[:, None] < prefix))
    return torch.where(seen, 0.0, torch.finfo(torch.float32).min)[None, None]
