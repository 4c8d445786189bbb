"""RTN and AWQ on the nano model and its stress twins: KL to fp32, NLL and exact match on answer tokens of held-out questions.

    python -m benchmarks.quantize_nano RESULTS.json [--questions 400] [--samples 32] [--factors 1 8 32]

Groups of 128, 64 and 32 at 4 bits; 3 and 2 bits at 128 as positive controls. Intervals are of the mean over questions (1.96
standard errors), paired between AWQ and RTN. A twin (benchmarks/stress_twins.py) has outlier channels and computes what the nano
model computes: its figures are of a stress test.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.nano_sequences import CALIBRATION_SEED, CHECKPOINT, HELD_OUT_SEED, Asked, questions
from benchmarks.stress_twins import make_twin
from recipes.nano.evaluate import cpu_name
from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.weights import load_parts
from vlm_edge.pipeline import quantize_run
from vlm_edge.pipeline.quantize import QuantizeOptions, quantize_model, versions
from vlm_edge.quant.reading import dequantized

SETTINGS = ((4, 128), (4, 64), (4, 32), (3, 128), (2, 128))
"""(bits, group size)"""


@dataclass(frozen=True)
class Row:
    """Means over questions; kl_low, kl_high: interval of KL; gain: of RTN's KL minus this one's, with its interval."""

    model: str
    bits: int
    group_size: int
    method: str
    kl: float
    kl_low: float
    kl_high: float
    gain: float
    gain_low: float
    gain_high: float
    nll: float
    exact: float
    seconds: float


@dataclass(frozen=True)
class Answers:
    """Of each question: log-probabilities of all its answer tokens [n, V], and whether the true token is the likeliest at each."""

    log_probabilities: list[torch.Tensor]
    exact: torch.Tensor
    nll: torch.Tensor


def decoder(checkpoint: Path) -> Any:
    """A LLaVA checkpoint's language model and head in fp32."""
    return load_parts(open_checkpoint(checkpoint), ("model.language_model", "lm_head"), dtype=torch.float32)


def rounded_decoder(model: Any, folder: Path) -> Any:
    """The same with the weights of a checkpoint in AutoAWQ's format."""
    other = deepcopy(model)
    names = {name.removeprefix("model."): parameter for name, parameter in other.named_parameters()}
    with torch.no_grad():
        for name, tensor in dequantized(folder):
            own = name.replace("language_model.model.", "language_model.").replace("language_model.lm_head", "lm_head")
            own = own.removeprefix("model.")
            if own in names and not names[own].is_meta:
                names[own].copy_(tensor)
    return other


def answers(model: Any, held_out: Sequence[Asked]) -> Answers:
    """Teacher-forced: greedy decoding gives the true answer exactly when every true token is the likeliest."""
    found, exact, nll = [], [], []
    with torch.no_grad():
        for asked in held_out:
            count = len(asked.answer)
            states = model.model.language_model(inputs_embeds=asked.hidden[None], use_cache=False).last_hidden_state
            rows = model.lm_head(states[0, -count:]).log_softmax(-1)
            wanted = torch.tensor(asked.answer)
            found.append(rows)
            exact.append(bool((rows.argmax(-1) == wanted).all()))
            nll.append(float(-rows[torch.arange(count), wanted].mean()))
    return Answers(found, torch.tensor(exact), torch.tensor(nll, dtype=torch.float64))


def divergences(reference: Answers, other: Answers) -> torch.Tensor:
    """Mean KL(reference || other) over each question's answer tokens, in nats."""
    pairs = zip(reference.log_probabilities, other.log_probabilities, strict=True)
    return torch.tensor([float((p.exp() * (p - q)).sum(-1).mean()) for p, q in pairs], dtype=torch.float64)


def interval(values: torch.Tensor) -> tuple[float, float, float]:
    """(mean, low, high)"""
    mean, half = float(values.mean()), 1.96 * float(values.std()) / len(values) ** 0.5
    return mean, mean - half, mean + half


def measure(name: str, checkpoint: Path, calibration: Sequence[Asked], held_out: Sequence[Asked]) -> list[Row]:
    """Every setting on one checkpoint, printed as it is done."""
    model = decoder(checkpoint)
    reference = answers(model, held_out)
    print(f"| {name} | fp32 | | 0 | | {reference.nll.mean():.4f} | {reference.exact.float().mean():.4f} |", flush=True)
    given = [asked.sequence() for asked in calibration]
    rows = []
    for bits, group in SETTINGS:
        plain: torch.Tensor | None = None
        for method in ("rtn", "awq"):
            options = QuantizeOptions(bits=bits, group_size=group, method=method, device="cpu")
            with tempfile.TemporaryDirectory() as folder:
                done = quantize_model(checkpoint, Path(folder), options, sequences=given if method == "awq" else None)
                found = answers(rounded_decoder(model, Path(folder) / "llm/awq"), held_out)
            kl = divergences(reference, found)
            plain = kl if plain is None else plain
            nll, exact = float(found.nll.mean()), float(found.exact.float().mean())
            row = Row(
                name, bits, group, method, *interval(kl), *interval(plain - kl), nll, exact, done.report["seconds"]
            )
            rows.append(row)
            print(
                f"| {name} | {method} {bits} bits | {group} | {row.kl:.5f} ({row.kl_low:.5f} to {row.kl_high:.5f}) | "
                f"{row.gain:.5f} ({row.gain_low:.5f} to {row.gain_high:.5f}) | {nll:.4f} | {exact:.4f} |",
                flush=True,
            )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--questions", type=int, default=400)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 8, 32])
    arguments = parser.parse_args()
    quantize_run.gate = lambda *_given: None  # the table shows what the product would refuse
    calibration = list(questions(arguments.samples, CALIBRATION_SEED, for_each_page=4))
    held_out = list(questions(arguments.questions, HELD_OUT_SEED))
    print(
        "| model | weights | group | KL to fp32, nats | gain over RTN | NLL | exact |\n| --- | --- | --- | --- | --- | --- | --- |"
    )
    rows: list[Row] = []
    for factor in arguments.factors:
        with tempfile.TemporaryDirectory() as folder:
            if factor > 1:
                make_twin(CHECKPOINT, Path(folder) / "twin", factor=factor, channels=0.03)
            source = Path(folder) / "twin" if factor > 1 else CHECKPOINT
            rows += measure(f"twin x{factor}" if factor > 1 else "nano", source, calibration, held_out)
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python -m benchmarks.quantize_nano", *sys.argv[1:]]),
        "cpu": cpu_name(),
        "versions": versions(),
        "rows": [asdict(row) for row in rows],
    }
    with atomic_write(arguments.results) as stream:
        stream.write(json.dumps(report, indent=1).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
