"""Trains the light network that flags the regions of an image which are worth a full-resolution tile.

python -m recipes.nano.saliency train OUT.onnx                  # minutes on one core
python -m recipes.nano.saliency ship OUT.onnx vlm_edge/nano     # enters it in the bundle

The file that it writes has the signature of every saliency model that `--saliency cnn` takes; see backends/onnx/saliency.py.
"""

from __future__ import annotations

import argparse
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from vlm_edge.backends.onnx.graph_passes import drop_stack_traces
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.bundle_writer import LOCK, Staged, locked, publish

from .fonts import check_fonts
from .grounds import TAUGHT, on_texture
from .pages import Page, Style, draw_page

SEED = 3_000_000
"""Pages come from (SEED, i): those of training, samples and evaluation have other first numbers."""
STRIDE = 8
CROP_PX = 192
PAGES, CROPS_PER_PAGE, BATCH, STEPS = 160, 14, 16, 1800
RATE, WARM_UP_STEPS = 3e-3, 50
TEXTURED = 0.5
"""Share of pages on strong textures."""
POSITIVE_WEIGHT = 4.0
LEAST_COVER = 0.3
"""Share of a cell that a line must cover for the cell to count as worth seeing."""


class SaliencyNet(nn.Module):
    """pixels float32 [N, 3, H, W], RGB in 0..1 -> saliency [N, H / 8, W / 8] in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, 16), (16, 24), (24, 32)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
        for dilation in (1, 2, 1):
            layers += [nn.Conv2d(32, 32, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        self.body = nn.Sequential(*layers, nn.Conv2d(32, 1, 1))

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.body(pixels - 0.5).squeeze(1)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.logits(pixels))


def labels(page: Page) -> np.ndarray:
    """float32 [ceil(H / 8), ceil(W / 8)]: 1 where a `key: value` line covers enough of a cell. Shapes and body text are 0."""
    rows, cols = -(-page.height // STRIDE), -(-page.width // STRIDE)
    cover = np.zeros((rows * STRIDE, cols * STRIDE), np.float32)
    for line in page.lines:
        x0, y0, x1, y1 = (max(0, round(value)) for value in line.box)
        cover[y0:y1, x0:x1] = 1
    return (cover.reshape(rows, STRIDE, cols, STRIDE).mean((1, 3)) >= LEAST_COVER).astype(np.float32)


def crops(rng: np.random.Generator, page: Page, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Crops on the grid of cells, half of them around a line, as (uint8 [S, S, 3], float32 [S / 8, S / 8])."""
    target, cells, found = labels(page), CROP_PX // STRIDE, []
    rows, cols = page.height // STRIDE - cells, page.width // STRIDE - cells
    for i in range(CROPS_PER_PAGE):
        row, col = int(rng.integers(rows + 1)), int(rng.integers(cols + 1))
        if i % 2 and page.lines:
            box = page.lines[int(rng.integers(len(page.lines)))].box
            row = min(max(int(box[1]) // STRIDE - int(rng.integers(cells)), 0), rows)
            col = min(max(int(box[0]) // STRIDE - int(rng.integers(cells)), 0), cols)
        y, x = row * STRIDE, col * STRIDE
        found.append((image[y : y + CROP_PX, x : x + CROP_PX], target[row : row + cells, col : col + cells]))
    return found


def examples(pages: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """pixels uint8 [N, S, S, 3] and targets float32 [N, S / 8, S / 8]."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    for index in range(pages):
        rng = np.random.default_rng((seed, index))
        page = draw_page(rng, Style(max_side_px=900))
        image = page.image
        if rng.random() < TEXTURED:
            image = on_texture(rng, page, TAUGHT, share=float(rng.choice([0.4, 0.7, 1.0])))
        pairs += crops(rng, page, image)
    return np.stack([pixels for pixels, _ in pairs]), np.stack([target for _, target in pairs])


def train(*, steps: int = STEPS, pages: int = PAGES, seed: int = SEED) -> SaliencyNet:
    """AdamW with a rate that falls along a cosine; equal numbers give equal weights on one machine and thread."""
    torch.manual_seed(0)
    model = SaliencyNet()
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    started = time.monotonic()
    pixels, targets = examples(pages, seed)
    print(f"{len(pixels)} crops in {time.monotonic() - started:.0f} s, {targets.mean():.3f} positive", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-3)
    loss_of = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(POSITIVE_WEIGHT))
    rng = np.random.default_rng(seed)
    started, total = time.monotonic(), 0.0
    for step in range(1, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, step / WARM_UP_STEPS) * 0.5 * (1 + np.cos(np.pi * step / steps))
        chosen = rng.choice(len(pixels), BATCH, replace=False)
        batch = _varied(rng, torch.from_numpy(pixels[chosen]).permute(0, 3, 1, 2).float() / 255)
        target = torch.from_numpy(targets[chosen])
        loss = loss_of(model.logits(batch), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += float(loss.detach())
        if step % 100 == 0:
            print(f"step {step}, {time.monotonic() - started:.0f} s, loss {total / 100:.4f}", flush=True)
            total = 0.0
    return model.eval()


def _varied(rng: np.random.Generator, batch: torch.Tensor) -> torch.Tensor:
    """Colours in another order, half of the time inverted, and less contrast: what ink looks like is not to matter."""
    batch = batch[:, torch.from_numpy(rng.permutation(3))]
    if rng.random() < 0.5:
        batch = 1 - batch
    contrast = float(rng.uniform(0.6, 1))
    return contrast * batch + (1 - contrast) * float(rng.random())


def save(model: SaliencyNet, out: Path) -> None:
    """Write the network as one ONNX file whose batch, height and width may vary."""
    out.parent.mkdir(parents=True, exist_ok=True)
    dynamic = torch.export.Dim.DYNAMIC
    shapes = {"pixels": {0: dynamic, 2: 8 * torch.export.Dim("rows"), 3: 8 * torch.export.Dim("cols")}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        program = torch.onnx.export(
            model, (torch.zeros(2, 3, 128, 192),), input_names=["pixels"], output_names=["saliency"], dynamo=True,
            opset_version=20, dynamic_shapes=shapes, verbose=False,
        )  # fmt: skip
    drop_stack_traces(program.model)
    program.save(str(out))


def ship(model: Path, bundle: Path) -> None:
    """Put the file into a bundle as its saliency model."""
    with locked(bundle) as stage:
        manifest = open_bundle(bundle).manifest
        (stage / "saliency").mkdir()
        shutil.copyfile(model, stage / "saliency/model.onnx")
        publish(bundle, stage, [Staged("saliency/model.onnx", "saliency.graph", "any", "fp32")], manifest, old=manifest)
    (bundle / LOCK).unlink(missing_ok=True)  # the embedded bundle is part of the package


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    trained = commands.add_parser("train")
    trained.add_argument("out", type=Path)
    trained.add_argument("--steps", type=int, default=STEPS)
    shipped = commands.add_parser("ship")
    shipped.add_argument("model", type=Path)
    shipped.add_argument("bundle", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "ship":
        ship(arguments.model, arguments.bundle)
        return
    check_fonts()
    save(train(steps=arguments.steps), arguments.out)


if __name__ == "__main__":
    main()
