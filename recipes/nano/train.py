"""Train the nano model from nothing, in one command: python -m recipes.nano.train OUT

Six stages, each in a file of its own that is saved every ten minutes; the same command goes on where it was stopped. Then:
python -m recipes.nano.checkpoint save OUT/stage5.pt recipes/nano/checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import train_language, train_vision
from .fonts import check_fonts

STEPS = {0: 4600, 1: 2200, 2: 850, 3: 2800, 4: 600, 5: 900}
RATES = {2: 0.7, 5: 0.7}


def train(out: Path, seed: int = 0) -> None:
    check_fonts()
    out.mkdir(parents=True, exist_ok=True)
    file = {stage: out / f"stage{stage}.pt" for stage in STEPS}
    train_vision.train(file[0], steps=STEPS[0], seed=seed)
    for stage, before, vision in ((1, None, 0), (2, 1, None)):
        _language(stage, file, before, vision, seed)
    train_vision.train(file[3], steps=STEPS[3], seed=seed, sharpen=file[2])
    for stage, before, vision in ((4, 2, 3), (5, 4, 3)):
        _language(stage, file, before, vision, seed)


def _language(stage: int, file: dict[int, Path], before: int | None, vision: int | None, seed: int) -> None:
    start_from, tower = (None if i is None else file[i] for i in (before, vision))
    steps, rate = STEPS[stage], RATES.get(stage, 1.0)
    train_language.train(
        file[stage], stage=stage, start_from=start_from, vision=tower, steps=steps, seed=seed, rate=rate
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed)
