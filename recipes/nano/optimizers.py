"""Muon for the matrices, AdamW for the rest, and a trapezoid learning rate."""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Two optimizers stepped as one. Matrices inside transformer blocks go to Muon; embeddings, heads, vectors to AdamW."""

    def __init__(self, modules: dict[str, nn.Module], *, muon_lr: float, adamw_lr: float, steps: int) -> None:
        matrices, others = [], []
        for prefix, module in modules.items():
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                inner = parameter.ndim == 2 and not any(key in f"{prefix}.{name}" for key in ("embed", "head"))
                (matrices if inner else others).append(parameter)
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, lr=muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=adamw_lr, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.base = [muon_lr, adamw_lr]
        self.steps = steps
        self.parameters = matrices + others

    def step(self, step: int, *, warmup: int = 100, decay: float = 0.4) -> float:
        """Clip, update, clear. Returns the schedule's factor: up over `warmup`, flat, down to 0 over the last `decay`."""
        factor = min(1.0, (step + 1) / warmup, max(0.0, (self.steps - step) / (decay * self.steps)))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part, base in zip(self.parts, self.base, strict=True):
            for group in part.param_groups:
                group["lr"] = base * factor
            part.step()
            part.zero_grad(set_to_none=True)
        return factor

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
