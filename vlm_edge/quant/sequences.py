"""What passes through the decoder: calibration sequences, and their hidden states between two layers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlm_edge.errors import BadInput

_BYTES = 4


@dataclass(frozen=True)
class Placement:
    """Where the tokens of one sequence stand.

    length: tokens.  positions: int64 [3, length] for three-part rotary positions, or None for 0, 1, 2 ...
    prefix: so many tokens at the front see each other in both directions; 0 for a causal model.
    judged_from: logits before this token are not compared: those at visual tokens predict nothing.
    """

    length: int
    positions: torch.Tensor | None = None
    prefix: int = 0
    judged_from: int = 0


@dataclass(frozen=True)
class CalibrationSequence:
    """A prompt as the decoder reads it: input embeddings float32 [length, D], visual ones among them."""

    hidden: torch.Tensor
    placement: Placement


class HiddenStates:
    """Float32 [L_i, D] for each of a fixed number of sequences, in a file for each layer: `hidden-007.bin` is what layer 7 reads.

    resident: keep them in memory too; otherwise each is read when it is asked for.
    """

    def __init__(self, folder: Path, lengths: Sequence[int], width: int, *, resident: bool) -> None:
        self.folder, self.lengths, self.width, self.resident = folder, list(lengths), width, resident
        self._offsets = [0]
        for length in self.lengths:
            self._offsets.append(self._offsets[-1] + length * width * _BYTES)
        self._kept: dict[int, torch.Tensor] = {}
        self._index = 0
        self._fresh: dict[int, torch.Tensor] = {}

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder}, and run it again"

    @property
    def bytes(self) -> int:
        """Of one file."""
        return self._offsets[-1]

    def path(self, index: int) -> Path:
        """The file that layer `index` reads."""
        return self.folder / f"hidden-{index:03d}.bin"

    def open(self, index: int) -> None:
        """Read what layer `index` reads from now on; raises BadInput when its file is not whole."""
        path = self.path(index)
        if not path.is_file() or path.stat().st_size != self.bytes:
            raise BadInput(f"{path} is damaged: it cannot be continued", remedy=self._remedy)
        self._index, self._kept = index, {}
        if self.resident:
            self._kept = {i: self._read(i) for i in range(len(self.lengths))}

    def get(self, i: int) -> torch.Tensor:
        """Sequence i's states [L_i, D], as the open layer reads them."""
        return self._kept[i] if i in self._kept else self._read(i)

    def fresh(self, i: int) -> torch.Tensor:
        """Sequence i's states behind the open layer, which `put` was given."""
        return self._fresh[i] if i in self._fresh else self._read(i, self._partial(self._index + 1))

    def put(self, i: int, states: torch.Tensor) -> None:
        """Sequence i's states behind the open layer; they are read after `advance`."""
        states = states.to("cpu", torch.float32).contiguous()
        if states.shape != (self.lengths[i], self.width):
            raise ValueError(f"states {tuple(states.shape)} for a sequence of {self.lengths[i]} x {self.width}")
        with self._partial(self._index + 1).open("r+b") as stream:
            stream.seek(self._offsets[i])
            stream.write(states.numpy().data)
        if self.resident:
            self._kept.pop(i, None)
            self._fresh[i] = states

    def begin(self, index: int) -> None:
        """Make room for the states that layer `index` will read; `put` fills it."""
        with self._partial(index).open("wb") as stream:
            stream.truncate(self.bytes)
        self._index, self._fresh = index - 1, {}

    def advance(self) -> None:
        """The next layer's file is whole: it becomes what is read. The old file stays until `drop`."""
        index = self._index + 1
        with self._partial(index).open("r+b") as stream:
            os.fsync(stream.fileno())
        self._partial(index).replace(self.path(index))
        self._index, self._kept, self._fresh = index, self._fresh, {}

    def drop(self, index: int) -> None:
        """Remove the file of a layer that is done."""
        self.path(index).unlink(missing_ok=True)

    def _partial(self, index: int) -> Path:
        return self.folder / f".hidden-{index:03d}.partial"

    def _read(self, i: int, path: Path | None = None) -> torch.Tensor:
        path = path or self.path(self._index)
        states = torch.empty(self.lengths[i], self.width)
        with path.open("rb", buffering=0) as stream:
            stream.seek(self._offsets[i])
            view, done = memoryview(states.numpy()).cast("B"), 0
            while done < len(view):
                count = stream.readinto(view[done:])
                if not count:
                    raise BadInput(f"{path} ended early", remedy=self._remedy)
                done += count
        return states
