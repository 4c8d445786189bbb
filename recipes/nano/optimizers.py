"""Muon for the matrices, AdamW for the rest, and a trapezoid learning rate."""

from __future__ import annotations

import torch
from torch import nn


class Optimizers:
    """Two optimizers stepped as one. Matrices inside transformer blocks go to Muon; embeddings, heads, vectors to AdamW."""

    def __init__(
        self,
        modules: dict[str, nn.Module],
        *,
        muon_lr: float | None,
        adamw_lr: float,
        steps: int,
        rates: dict[str, float] | None = None,
    ) -> None:
        """muon_lr: None gives all to AdamW.  rates: by a module's name, a factor on both learning rates."""
        groups: list[list[dict]] = [[], []]
        self.parameters: list[nn.Parameter] = []
        for prefix, module in modules.items():
            matrices: list[nn.Parameter] = []
            others: list[nn.Parameter] = []
            for name, parameter in module.named_parameters():
                if not parameter.requires_grad:
                    continue
                inner = parameter.ndim == 2 and not any(key in f"{prefix}.{name}" for key in ("embed", "head"))
                (matrices if inner and muon_lr is not None else others).append(parameter)
            factor = (rates or {}).get(prefix, 1.0)
            for group, parameters, lr in zip(groups, (matrices, others), (muon_lr or 0.0, adamw_lr), strict=True):
                if parameters:
                    group.append({"params": parameters, "lr": factor * lr, "base": factor * lr})
            self.parameters += matrices + others
        self.parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups[1], betas=(0.9, 0.98), weight_decay=0.01)]
        if groups[0]:
            self.parts.insert(0, torch.optim.Muon(groups[0], weight_decay=0.01, adjust_lr_fn="match_rms_adamw"))
        self.steps = steps

    def step(self, step: int, *, warmup: int = 100, decay: float = 0.4) -> float:
        """Clip, update, clear. Returns the schedule's factor: up over `warmup`, flat, down to 0 over the last `decay`."""
        factor = min(1.0, (step + 1) / warmup, max(0.0, (self.steps - step) / (decay * self.steps)))
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = group["base"] * factor
            part.step()
            part.zero_grad(set_to_none=True)
        return factor

    def state_dict(self) -> list[dict]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)
