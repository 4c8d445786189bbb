"""Train the nano model from nothing, in one command: python -m recipes.nano.train OUT

Stage 0 teaches the vision tower, stage 1 projector and decoder, stage 2 all three together. Each saves every ten minutes, and the
same command goes on where it was stopped. Then: python -m recipes.nano.checkpoint save OUT/joint.pt recipes/nano/checkpoint
"""

from __future__ import annotations

import argparse
from pathlib import Path

from . import train_language, train_vision
from .fonts import check_fonts

VISION_STEPS, LANGUAGE_STEPS, JOINT_STEPS = 4600, 2200, 850
JOINT_RATE = 0.7


def train(out: Path, seed: int = 0) -> None:
    check_fonts()
    out.mkdir(parents=True, exist_ok=True)
    vision, language, joint = (out / f"{name}.pt" for name in ("vision", "language", "joint"))
    train_vision.train(vision, steps=VISION_STEPS, seed=seed)
    train_language.train(vision, language, steps=LANGUAGE_STEPS, seed=seed)
    train_language.train(vision, joint, steps=JOINT_STEPS, seed=seed, start_from=language, rate=JOINT_RATE)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train(arguments.out, arguments.seed)
