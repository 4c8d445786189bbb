"""Is AWQ worth it? fp32, RTN and AWQ on the nano model and its stress twins, on held-out questions.

    python -m benchmarks.quantize_nano WORK [--questions 2200] [--factors 1 32 8]
        [--report benchmarks/results/quantize_quality.md] [--as-is]

Groups of 128, 64 and 32 at 4 bits; 3 and 2 bits as positive controls; AWQ calibrated on questions about pages, and at groups of
128 on as many tokens of questions without their pages too. KL to fp32 and NLL on answer tokens, exact match by task. A twin
(benchmarks/stress_twins.py) has outlier channels and computes what the nano model computes: its figures are of a stress test.

Every measurement is kept in WORK as it comes, and a run that was stopped goes on with the next one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.nano_sequences import CALIBRATION_SEED, CHECKPOINT, HELD_OUT_SEED, Asked, questions
from benchmarks.packed_questions import Answers, answers, divergences, kept, load_answers, save_answers
from benchmarks.quantize_table import write_table
from benchmarks.stress_twins import make_twin
from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.weights import load_parts
from vlm_edge.pipeline.machine import cpu_name
from vlm_edge.pipeline.quantizing import run as quantize_run
from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions, quantize_model, versions
from vlm_edge.quant.reading import dequantized

SETTINGS = ((4, 128), (2, 128), (3, 128), (4, 32), (4, 64))
"""(bits, group size)"""
CHANNELS = 0.03
IMAGES, TEXT, NONE = "images", "text", ""
METHODS = (("rtn", NONE), ("awq", IMAGES), ("awq", TEXT))
"""(method, what it is calibrated on)"""
TEXT_GROUP = 128
"""The group size at which calibration without pages is measured."""
SAMPLES, TEXT_SAMPLES = 32, 720
"""About as many tokens: a page's views are 260 of them, a question and its answer 12."""


@dataclass(frozen=True)
class Setting:
    """One measurement.  factor: of the twin, 1 for the model itself; bits 32: not rounded."""

    factor: int
    bits: int
    group_size: int
    method: str
    calibration: str

    @property
    def key(self) -> str:
        """A file's name."""
        return f"x{self.factor}-{self.bits}-{self.group_size}-{self.method}-{self.calibration or 'none'}"


def settings(factors: Sequence[int]) -> Iterator[Setting]:
    """Everything, what matters most first."""
    for factor in factors:
        yield Setting(factor, 32, 0, "fp32", NONE)
    for bits, group in SETTINGS:
        for factor in factors:
            for method, calibration in METHODS:
                if calibration != TEXT or group == TEXT_GROUP:
                    yield Setting(factor, bits, group, method, calibration)


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


class Bench:
    """The folder of a run, and what is needed for one measurement after the other."""

    def __init__(self, work: Path, count: int) -> None:
        self.work, self.rows = work, work / f"rows-{count}"
        self.held_out = kept(work / f"held-out-{count}", lambda: questions(count, HELD_OUT_SEED))
        self._references: dict[int, tuple[Any, Answers]] = {}
        self._calibration: dict[str, list[Asked]] = {}

    def checkpoint(self, factor: int) -> Path:
        """The model's, or its twin's."""
        if factor == 1:
            return CHECKPOINT
        folder = self.work / f"twin-x{factor}"
        if not (folder / "config.json").is_file():
            with tempfile.TemporaryDirectory(dir=self.work) as temporary:
                make_twin(CHECKPOINT, Path(temporary) / "twin", factor=factor, channels=CHANNELS)
                (Path(temporary) / "twin").rename(folder)
        return folder

    def reference(self, factor: int) -> tuple[Any, Answers]:
        """The model in fp32, and its answers."""
        if factor not in self._references:
            model, path = decoder(self.checkpoint(factor)), self.rows / f"fp32-x{factor}.safetensors"
            if not path.is_file():
                save_answers(answers(model, self.held_out), path)
            self._references[factor] = model, load_answers(path)
        return self._references[factor]

    def calibration(self, kind: str) -> list[Asked]:
        """Questions with their pages or without."""
        if kind not in self._calibration:
            self._calibration[kind] = kept(
                self.work / f"calibration-{kind}",
                (lambda: questions(SAMPLES, CALIBRATION_SEED, for_each_page=4))
                if kind == IMAGES
                else (lambda: questions(TEXT_SAMPLES, CALIBRATION_SEED, for_each_page=100, images=False)),
            )
        return self._calibration[kind]

    def measure(self, setting: Setting) -> dict[str, Any]:
        """Figures of every question."""
        model, reference = self.reference(setting.factor)
        seconds, tokens = 0.0, 0
        if setting.method == "fp32":
            found, against = reference, self.reference(1)[1]  # a twin computes what the model computes
        else:
            against = reference
            given = [one.sequence() for one in self.calibration(setting.calibration)] if setting.calibration else None
            tokens = sum(one.placement.length for one in given or ())
            options = QuantizeOptions(
                bits=setting.bits, group_size=setting.group_size, method=setting.method, device="cpu"
            )
            with tempfile.TemporaryDirectory() as folder:
                done = quantize_model(self.checkpoint(setting.factor), Path(folder), options, sequences=given)
                seconds = done.report["seconds"]
                found = answers(rounded_decoder(model, Path(folder) / "llm/awq"), self.held_out)
        return {
            **asdict(setting),
            "seconds": seconds,
            "calibration_tokens": tokens,
            "kl": divergences(against, found).tolist(),
            "nll": found.nll.tolist(),
            "exact": found.exact.int().tolist(),
        }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("--questions", type=int, default=2200)
    parser.add_argument("--factors", type=int, nargs="+", default=[1, 32, 8])
    parser.add_argument("--report", type=Path)
    parser.add_argument("--as-is", action="store_true", help="measure nothing more: report what WORK holds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    quantize_run.gate = lambda *_given: None  # the table shows what the product would refuse
    bench = Bench(arguments.work, arguments.questions)
    rows, missing = [], []
    for setting in settings(arguments.factors):
        path = bench.rows / f"{setting.key}.json"
        if arguments.as_is and not path.is_file():
            missing.append(setting.key)
            continue
        if not path.is_file():
            row = bench.measure(setting)
            with atomic_write(path) as stream:
                stream.write(json.dumps(row).encode() + b"\n")
        rows.append(json.loads(path.read_text("utf-8")))
        kl, exact = (sum(rows[-1][name]) / len(rows[-1][name]) for name in ("kl", "exact"))
        print(f"{setting.key}: KL {kl:.5f} nats, exact {exact:.4f}, {rows[-1]['seconds']:.0f} s", flush=True)
    if arguments.report:
        about = {
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "command": " ".join(["python -m benchmarks.quantize_nano", *sys.argv[1:]]).replace(
                str(arguments.work), "WORK"
            ),
            "cpu": cpu_name(),
            "versions": versions(),
            "missing": missing,
        }
        write_table(rows, bench.held_out, about, arguments.report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
