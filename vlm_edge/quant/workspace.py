"""A folder in which finished layers, hidden states and what was decided survive a kill."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save

from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.load import parse, to_plain
from vlm_edge.errors import BadInput
from vlm_edge.quant.layer import PairReport
from vlm_edge.quant.sequences import CalibrationSequence, HiddenStates, Placement

STATE = "state.json"
POSITIONS = "positions.safetensors"


@dataclass(frozen=True)
class LayerReport:
    """One finished layer.

    error, plain_error: of the held-out sequences' hidden states behind it, squared and relative to the fp32 model's, with this
    method and with plain rounding, all layers before it rounded too; None without calibration.  clip_share: share of groups
    whose outliers were cut, by linear layer.
    """

    index: int
    pairs: tuple[PairReport, ...] = ()
    clip_share: dict[str, float] | None = None
    error: float | None = None
    plain_error: float | None = None
    seconds: float = 0.0
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


@dataclass(frozen=True)
class _Place:
    length: int
    prefix: int
    judged_from: int
    three_part: bool


@dataclass(frozen=True)
class State:
    """What was decided and finished.

    fingerprint: of model, options and calibration data.  sequences: those that calibrate, then the held-out ones.
    counts: what became of the calibration data.
    """

    fingerprint: str
    width: int = 0
    sequences: tuple[_Place, ...] = ()
    held_out: int = 0
    counts: dict[str, int] | None = None
    layers: tuple[LayerReport, ...] = ()
    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}


class Workspace:
    """The folder and its state, which is written after every layer; whatever state.json does not tell of is written again."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Continue what is in the folder, or clear it when that was another model, other options or other data."""
        self.folder = folder
        found = self._found(fingerprint)
        if found is None:
            clear(folder)
        self.state = found or State(fingerprint)
        self.resumed = len(self.state.layers)
        folder.mkdir(parents=True, exist_ok=True)

    def _found(self, fingerprint: str) -> State | None:
        path = self.folder / STATE
        try:
            state: State = parse(json.loads(path.read_text("utf-8")), State, str(path))
        except (OSError, ValueError, BadInput):
            return None
        return state if state.fingerprint == fingerprint else None

    def start(
        self,
        calibrating: Sequence[CalibrationSequence],
        held_out: Sequence[CalibrationSequence],
        counts: Mapping[str, int],
    ) -> None:
        """Write what the first layer reads: every sequence, and the held-out ones twice more, for the rounded models."""
        every = [*calibrating, *held_out]
        places = tuple(
            _Place(s.placement.length, s.placement.prefix, s.placement.judged_from, s.placement.positions is not None)
            for s in every
        )
        width = every[0].hidden.shape[1]
        positions = {str(i): s.placement.positions for i, s in enumerate(every) if s.placement.positions is not None}
        with atomic_write(self.folder / POSITIONS) as stream:
            stream.write(save(positions))
        self.state = replace(
            self.state, width=width, sequences=places, held_out=len(held_out), counts=dict(counts), layers=()
        )
        states = self.hidden_states(resident=False)
        states.begin(0)
        for i, sequence in enumerate([*every, *held_out, *held_out]):
            states.put(i, sequence.hidden)
        states.advance()
        self.save()

    def placements(self) -> list[Placement]:
        """Of every sequence, the held-out ones three times."""
        positions: dict[str, torch.Tensor] = load_tensors(self.folder / POSITIONS)
        places = [
            Placement(place.length, positions.get(str(i)), place.prefix, place.judged_from)
            for i, place in enumerate(self.state.sequences)
        ]
        held = places[len(places) - self.state.held_out :]
        return [*places, *held, *held]

    def hidden_states(self, *, resident: bool) -> HiddenStates:
        """Of every sequence, in the order of `placements`."""
        lengths = [place.length for place in self.state.sequences]
        held = lengths[len(lengths) - self.state.held_out :]
        return HiddenStates(self.folder, [*lengths, *held, *held], self.state.width, resident=resident)

    def layer_path(self, index: int) -> Path:
        """A finished layer's tensors."""
        return self.folder / f"layer-{index:03d}.safetensors"

    def write_layer(self, index: int, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write a layer whole and return what was read back."""
        with atomic_write(self.layer_path(index)) as stream:
            stream.write(save(dict(tensors)))
        read: dict[str, torch.Tensor] = load_tensors(self.layer_path(index))
        return read

    def record(self, report: LayerReport) -> None:
        """A layer is finished: from now on a new run goes on behind it."""
        self.state = replace(self.state, layers=(*self.state.layers, report))
        self.save()

    def save(self) -> None:
        """Write state.json."""
        content: Any = to_plain(self.state)
        with atomic_write(self.folder / STATE) as stream:
            stream.write(json.dumps(content).encode() + b"\n")

    def remove(self) -> None:
        """Everything is where it belongs."""
        clear(self.folder)


def clear(folder: Path) -> None:
    """Remove a workspace; its state first, so that a run that is killed meanwhile leaves nothing that could be continued."""
    with suppress(OSError):
        (folder / STATE).unlink()
    shutil.rmtree(folder, ignore_errors=True)
