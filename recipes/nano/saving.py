"""Checkpoints of a training stage: written every ten minutes and at the end, read again when the stage is continued."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from .optimizers import Optimizers

SAVE_SECONDS = 600


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """The whole model's weights in fp32, of a training stage's file or of a saved Hugging Face folder."""
    if path.is_dir():
        return LlavaForConditionalGeneration.from_pretrained(path, dtype=torch.float32).state_dict()
    state: dict[str, torch.Tensor] = torch.load(path)["model"]
    return state


class Checkpoint:
    """One file that holds modules under their names, their optimizers, and the number of steps done."""

    def __init__(
        self, path: Path, modules: Mapping[str, nn.Module], optimizers: Optimizers, minutes: float | None
    ) -> None:
        self.path, self.modules, self.optimizers = path, modules, optimizers
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
        for name, module in self.modules.items():
            module.load_state_dict(saved[name])
        self.optimizers.load_state_dict(saved["optimizers"])
        return saved["step"]

    def after(self, step: int) -> bool:
        """Save when it is time; true when the stage is over, or its minutes are."""
        done = step + 1 == self.optimizers.steps
        done = done or (self.minutes is not None and self.seconds > 60 * self.minutes)
        if done or time.monotonic() - self.saved > SAVE_SECONDS:
            state: dict = {name: module.state_dict() for name, module in self.modules.items()}
            state |= {"optimizers": self.optimizers.state_dict(), "step": step + 1}
            temporary = self.path.with_suffix(".tmp")
            torch.save(state, temporary)
            temporary.replace(self.path)
            self.saved = time.monotonic()
        return done
