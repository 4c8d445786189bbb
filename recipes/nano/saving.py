"""Checkpoints of a training stage: written every ten minutes and at the end, read again when the stage is continued."""

from __future__ import annotations

import time
from pathlib import Path

import torch
from torch import nn

from .optimizers import Optimizers

SAVE_SECONDS = 600


class Checkpoint:
    """One file that holds a module under `name`, its optimizers, and the number of steps done."""

    def __init__(self, path: Path, name: str, module: nn.Module, optimizers: Optimizers, minutes: float | None) -> None:
        self.path, self.name, self.module, self.optimizers = path, name, module, optimizers
        self.minutes = minutes
        self.began = self.saved = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began

    def resume(self) -> int:
        """Load the file where there is one; returns the step to go on with."""
        if not self.path.exists():
            return 0
        saved = torch.load(self.path)
        self.module.load_state_dict(saved[self.name])
        self.optimizers.load_state_dict(saved["optimizers"])
        return saved["step"]

    def after(self, step: int) -> bool:
        """Save when it is time; true when the stage is over, or its minutes are."""
        done = step + 1 == self.optimizers.steps
        done = done or (self.minutes is not None and self.seconds > 60 * self.minutes)
        if done or time.monotonic() - self.saved > SAVE_SECONDS:
            state = {self.name: self.module.state_dict(), "optimizers": self.optimizers.state_dict(), "step": step + 1}
            temporary = self.path.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(self.path)
            self.saved = time.monotonic()
        return done
