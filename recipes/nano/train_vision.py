"""Stage 0 teaches the vision tower alone, patch by patch, on dense labels; stage 3 goes on with denser pages (sheets.py)."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import CLIPVisionConfig, CLIPVisionModel

from . import views
from .labels import GRID, HEADS, NO_LABEL, TILE_HEADS, global_labels, stack_labels, tile_labels
from .optimizers import Optimizers
from .pages import VIEW_PX, draw_page
from .saving import Checkpoint, load_state
from .sheets import sheet_tiles

PAGES, SHEETS, TILES = 10, 6, 9
REPLAY = 48
CONFIG = CLIPVisionConfig(
    hidden_size=256, num_hidden_layers=5, num_attention_heads=4, intermediate_size=768, image_size=VIEW_PX,
    patch_size=14, hidden_act="gelu", projection_dim=256,
)  # fmt: skip


SHARPEN_KEY = 3
"""First element of stage 3's random states, beside the seed: its pages are none of stage 0's."""
SHARPEN_TOWER_RATE = 0.7


class DenseHeads(nn.Module):
    """One linear head per label on the tower's patch features; none of them ships."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(CONFIG.hidden_size)
        self.head = nn.ModuleDict({name: nn.Linear(CONFIG.hidden_size, classes) for name, classes in HEADS.items()})


def build_tower() -> CLIPVisionModel:
    """A fresh tower whose position embeddings begin as a grid."""
    tower = CLIPVisionModel(CONFIG)
    embeddings = next(m for n, m in tower.named_modules() if n.endswith("embeddings"))
    embeddings.position_embedding.weight.data[1:] = sincos_2d(GRID, CONFIG.hidden_size)
    return tower


def sincos_2d(side: int, width: int) -> torch.Tensor:
    """Fixed 2-D sine and cosine positions [side * side, width], a start that spares learning what a grid is."""
    omega = 1.0 / 100 ** (torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [c.reshape(-1, 1) * omega for c in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1) * 0.5


def draw_views(rng: np.random.Generator) -> tuple[list[np.ndarray], list[dict[str, np.ndarray]]]:
    """The global view and TILES tiles of one page, with their labels."""
    page = draw_page(rng)
    tiles = []
    lines = [line for line in page.lines if line.box[2] <= page.width]
    while len(tiles) < TILES:
        if lines and rng.random() < 0.92:
            tiles += views.around(rng, page, lines[int(rng.integers(len(lines)))])
        else:
            tiles.append(views.anywhere(rng, page))
    pixels = [views.global_view(page)] + [views.worn(rng, views.cut(page, tile)) for tile in tiles[:TILES]]
    return pixels, [global_labels(page)] + [tile_labels(page.lines, tile) for tile in tiles[:TILES]]


class Batches(IterableDataset):
    """Batch i depends on (seed, i) only, so a resumed run sees what an unbroken one would.

    sharpen: SHEETS of the PAGES are sheets, seen through tiles alone.
    """

    def __init__(self, seed: int, start: int, *, sharpen: bool) -> None:
        self.seed, self.start, self.sharpen = seed, start, sharpen

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        index = self.start
        while True:
            key = (self.seed, SHARPEN_KEY, index) if self.sharpen else (self.seed, index)
            rng = np.random.default_rng(key)
            sheets = SHEETS if self.sharpen else 0
            pages = [draw_views(rng) for _ in range(PAGES - sheets)]
            pixels, labels = sheet_tiles(rng, sheets)
            pixels = np.concatenate([np.stack(views_) for views_, _ in pages] + [pixels])
            labels = np.concatenate([stack_labels(of_page) for _, of_page in pages] + [labels])
            yield torch.from_numpy(pixels), torch.from_numpy(labels)
            index += 1


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [B, S, S, 3] -> float32 [B, 3, S, S] in -1..1."""
    return pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0).contiguous()


def losses(heads: DenseHeads, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Cross entropy per head on the tower's features [V, P, D] against stack_labels' [V, heads, GRID, GRID]."""
    flat = heads.norm(features).reshape(-1, features.shape[-1])
    parts: dict[str, float] = {}
    total = torch.zeros(())
    targets = {name: labels[:, i].reshape(-1).long() for i, name in enumerate(HEADS)}
    busy = (targets["key"] > 0) | (targets["kind"] > 0)
    for name in HEADS:
        chosen = (targets[name] != NO_LABEL) & (busy if name not in ("key", "kind") else torch.ones_like(busy))
        index = chosen.nonzero().squeeze(1)
        if not len(index):
            continue
        target = targets[name][index]
        logits = heads.head[name](flat[index]).float()
        loss = (soft_cross_entropy if name in ("x0", "y0", "x1", "y1") else F.cross_entropy)(logits, target)
        weight = {"index": 0.3, "cut": 0.3, "kind": 1.0, "key": 1.0}.get(name, 1.0 if name in TILE_HEADS else 0.3)
        total = total + weight * loss
        parts[name] = (logits.argmax(-1) == target).float().mean().item()
    return total, parts


def soft_cross_entropy(logits: torch.Tensor, target: torch.Tensor, sigma: float = 1.0) -> torch.Tensor:
    """Cross entropy against a Gaussian over neighbouring bins: near misses cost less than far ones."""
    bins = torch.arange(logits.shape[-1])
    soft = torch.softmax(-((bins - target[:, None]) ** 2) / (2 * sigma**2), dim=-1)
    return F.cross_entropy(logits, soft)


def train(
    out: Path, *, steps: int, seed: int = 0, minutes: float | None = None, sharpen: Path | None = None
) -> None:  # fmt: skip
    """Train to `steps`, saving to `out` every ten minutes; an existing checkpoint is continued.

    sharpen: file of stage 2 (or a saved Hugging Face folder) whose tower goes on; without it a fresh one begins.
    """
    torch.manual_seed(seed)
    tower, heads = build_tower(), DenseHeads()
    if sharpen is not None:
        prefix = "model.vision_tower."
        state = load_state(sharpen)
        tower.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    optimizers = Optimizers(
        {"tower": tower, "heads": heads}, muon_lr=4e-3, adamw_lr=2.4e-3, steps=steps,
        rates={"tower": SHARPEN_TOWER_RATE if sharpen else 1.0},
    )  # fmt: skip
    checkpoint = Checkpoint(out, {"tower": tower, "heads": heads}, optimizers, minutes)
    start = checkpoint.resume()
    see = torch.compile(lambda pixels: tower(pixels).last_hidden_state[:, 1:])
    batches = Batches(seed, start, sharpen=sharpen is not None)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=1, prefetch_factor=8))
    ring: list[tuple[torch.Tensor, torch.Tensor]] = []
    running: dict[str, float] = {}
    for step in range(start, steps):
        if step % 2 == 0 or len(ring) < 8:
            ring.append(next(loader))
            ring = ring[-REPLAY:]
            pixels, labels = ring[-1]
        else:
            pixels, labels = ring[int(torch.randint(len(ring), ()))]
        with torch.autocast("cpu", torch.bfloat16):
            features = see(normalize(pixels))
        total, parts = losses(heads, features.float(), labels)
        total.backward()
        factor = optimizers.step(step, decay=0.7 if sharpen else 0.4)
        for name, value in (parts | {"loss": total.item()}).items():
            running[name] = 0.97 * running.get(name, value) + 0.03 * value
        if step % 50 == 0:
            shown = " ".join(f"{k} {v:.3f}" for k, v in running.items() if k not in ("y0", "x1", "y1"))
            print(f"step {step} {checkpoint.seconds:.0f}s lr {factor:.2f} {shown}", flush=True)
        if checkpoint.after(step):
            break


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--minutes", type=float, default=None, help="stop (and save) after this long; run again to go on"
    )
    parser.add_argument("--sharpen", type=Path, help="go on with the tower of stage 2's file or of a saved folder")
    a = parser.parse_args()
    train(a.out, steps=a.steps, seed=a.seed, minutes=a.minutes, sharpen=a.sharpen)
