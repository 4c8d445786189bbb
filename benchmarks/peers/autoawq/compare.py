"""Our AWQ beside AutoAWQ 0.2.9 on the same weights and the same calibration tokens.

    bash benchmarks/peers/autoawq/setup.sh ENV
    python -m benchmarks.peers.autoawq.compare ENV RESULTS.json [--group 128] [--samples 32] [--held-out 150] [--only NAME]...

For each model: AutoAWQ's own loader reads our checkpoint, and its dequantized weights are compared with ours bit by bit; AutoAWQ
quantizes the model too, and both, with plain rounding beside them, are held against the fp32 model by their KL on held-out tokens.
AutoAWQ judges scales on every calibration token; ours on as many as `quantize` does by itself, and beside it on every token too.
Each row is kept in RESULTS.json as it comes, in place of an older one of its model.

AutoAWQ calibrates on token ids. So that it sees image tokens as well, the visual embeddings of the nano model's prompts are added
to its embedding table as further tokens: then a sequence of ids is what the decoder reads of a page.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from benchmarks.nano_sequences import CALIBRATION_SEED, CHECKPOINT, HELD_OUT_SEED, Asked, questions
from benchmarks.stress_twins import make_twin
from vlm_edge.core.bundle import atomic_write
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.text_weights import extract_text_model
from vlm_edge.pipeline.machine import cpu_name
from vlm_edge.pipeline.quantizing import run as quantize_run
from vlm_edge.pipeline.quantizing.quantize import QuantizeOptions, quantize_model, versions
from vlm_edge.quant.reading import dequantized
from vlm_edge.quant.sequences import CalibrationSequence, Placement

LENGTH = 256
PEER = Path(__file__).with_name("peer.py")
LIMIT = 1.02
SHAPE = {
    "vocab_size": 512, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4,
    "max_position_embeddings": 512, "tie_word_embeddings": False,
}  # fmt: skip
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2", {"num_key_value_heads": 2}),
    "gemma": ("Gemma", {"num_key_value_heads": 4, "head_dim": 64, "tie_word_embeddings": True}),
}


@dataclass(frozen=True)
class Data:
    """Token ids of LENGTH each; judged: how many last positions of each held-out one are compared; vocabulary: of real tokens."""

    calibration: list[list[int]]
    held_out: list[list[int]]
    judged: list[int]
    vocabulary: int


@dataclass(frozen=True)
class Row:
    """KL to fp32 in nats a token: ours, ours judged on every token, AutoAWQ's, plain rounding; bit_equal: their reading of our
    file against ours."""

    model: str
    group_size: int
    ours: float
    ours_every_token: float
    autoawq: float
    rtn: float
    ratio: float
    ratio_every_token: float
    rtn_ratio: float
    layers_read: int
    bit_equal: bool


def nano(folder: Path, factor: int, samples: int, held_out: int) -> Data:
    """The nano model's decoder, or a twin of it, with the visual embeddings of all prompts as tokens."""
    extract_text_model(open_checkpoint(CHECKPOINT), folder)
    if factor > 1:
        make_twin(folder, folder, factor=factor, channels=0.03)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    own = model.get_input_embeddings().weight.detach()
    known = {tuple(row.tolist()): i for i, row in enumerate(own)}
    extra: list[torch.Tensor] = []

    def ids(asked: Asked) -> list[int]:
        found = []
        for row in asked.hidden[-LENGTH:]:
            key = tuple(row.tolist())
            if key not in known:
                known[key] = len(known)
                extra.append(row)
            found.append(known[key])
        return found

    def long_enough(asked: Asked) -> bool:
        return len(asked.hidden) >= LENGTH

    calibration = [ids(a) for a in questions(samples, CALIBRATION_SEED, for_each_page=4) if long_enough(a)]
    asked = [a for a in questions(held_out, HELD_OUT_SEED) if long_enough(a)]
    data = Data(calibration, [ids(a) for a in asked], [len(a.answer) for a in asked], own.shape[0])
    model.resize_token_embeddings(len(known), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[own.shape[0] :] = torch.stack(extra)
        model.lm_head.weight[own.shape[0] :] = 0
    model.save_pretrained(folder)
    return data


def shaped(kind: str) -> Callable[[Path, int, int, int], Data]:
    """A random model of an architecture as a twin."""

    def make(folder: Path, factor: int, samples: int, held_out: int) -> Data:
        name, own = SHAPES[kind]
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(**{**SHAPE, **own})
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)  # sharper than at initialisation, so that logits differ
        model.save_pretrained(folder)
        make_twin(folder, folder, factor=factor, channels=0.03)
        generator = torch.Generator().manual_seed(1)
        rows = torch.randint(3, SHAPE["vocab_size"], (samples + held_out // 8, LENGTH), generator=generator).tolist()
        return Data(rows[:samples], rows[samples:], [LENGTH // 2] * (held_out // 8), SHAPE["vocab_size"])

    return make


MODELS: dict[str, tuple[Callable[[Path, int, int, int], Data], int]] = {
    "nano": (nano, 1),
    "nano twin x8": (nano, 8),
    "nano twin x32": (nano, 32),
    "llama-shaped twin x16": (shaped("llama"), 16),
    "qwen2-shaped twin x16": (shaped("qwen2"), 16),
    "gemma-shaped twin x16": (shaped("gemma"), 16),
}


def logits(model: Any, data: Data) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = [
            model(input_ids=torch.tensor([row]), logits_to_keep=count).logits[0, :, : data.vocabulary]
            for row, count in zip(data.held_out, data.judged, strict=True)
        ]
    return [rows.double().log_softmax(-1) for rows in outputs]


def divergence(reference: list[torch.Tensor], model: Any, data: Data) -> float:
    found = logits(model, data)
    total = sum(float((p.exp() * (p - q)).sum()) for p, q in zip(reference, found, strict=True))
    return total / sum(data.judged)


def with_weights(model: Any, folder: Path) -> Any:
    other = type(model)(model.config).eval()
    other.load_state_dict({name: tensor.float() for name, tensor in dequantized(folder)}, strict=False)
    other.tie_weights()
    return other


def compare(name: str, environment: Path, group: int, samples: int, held_out: int) -> Row:
    make, factor = MODELS[name]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        source = root / "model"
        data = make(source, factor, samples, held_out)
        model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
        reference = logits(model, data)
        table = model.get_input_embeddings()
        with torch.no_grad():
            hidden = [table(torch.tensor(row)) for row in data.calibration]
        # The quantizer holds a quarter out for its gate; AutoAWQ does not. To calibrate on the same tokens, repeat some.
        every = [CalibrationSequence(states, Placement(LENGTH)) for states in hidden]
        given = []
        for i, sequence in enumerate(every):
            given.append(sequence)
            if len(given) % 4 == 3:
                given.append(every[i])
        own = QuantizeOptions(group_size=group, device="cpu")
        ways = {
            "awq": own,
            "every token": replace(own, search_tokens=len(every) * LENGTH),
            "rtn": replace(own, method="rtn"),
        }
        errors = {}
        for way, options in ways.items():
            quantize_model(source, root / way, options, sequences=None if way == "rtn" else given)
            errors[way] = divergence(reference, with_weights(model, root / way / "llm/awq"), data)
        python = environment / "bin/python"
        (root / "calibration.json").write_text(json.dumps(data.calibration))
        read = root / "read.safetensors"
        _run([python, PEER, "load", root / "awq/llm/awq", read])
        theirs, ours = load_file(read), dict(dequantized(root / "awq/llm/awq", torch.float16))
        equal = all(torch.equal(ours[f"{layer}.weight"], weight) for layer, weight in theirs.items())
        _run([python, PEER, "quantize", source, root / "peer", root / "calibration.json", str(group)])
        peer = divergence(reference, with_weights(model, root / "peer"), data)
    return Row(
        name, group, errors["awq"], errors["every token"], peer, errors["rtn"],
        *(error / peer for error in errors.values()), len(theirs), equal,
    )  # fmt: skip


def _keep(row: dict[str, Any], path: Path) -> None:
    """Put a row into the results in place of an older one of that model and group size; the others stay."""
    old = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else []
    rows = [other for other in old if (other["model"], other["group_size"]) != (row["model"], row["group_size"])]
    report = {
        "cpu": cpu_name(),
        "versions": {**versions(), "autoawq": "0.2.9", "autoawq's transformers": "4.56.2"},
        "limit": LIMIT,
        "rows": [*rows, row],
    }
    with atomic_write(path) as stream:
        stream.write(json.dumps(report, indent=1).encode() + b"\n")


def _run(command: list[Any]) -> None:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("environment", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--group", type=int, default=128)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--held-out", type=int, default=150)
    parser.add_argument("--only", action="append", choices=list(MODELS))
    arguments = parser.parse_args()
    quantize_run.gate = lambda *_given: None  # what this measures is not to be cut off by the product's own gate
    command = " ".join(["python -m benchmarks.peers.autoawq.compare ENV RESULTS.json", *sys.argv[3:]])
    rows = []
    print(
        "| model | group | ours | ours, every token | AutoAWQ | RTN | ours / AutoAWQ | every token | bit-equal layers |\n"
        f"|{' --- |' * 9}"
    )
    for name in arguments.only or MODELS:
        row = compare(name, arguments.environment, arguments.group, arguments.samples, arguments.held_out)
        rows.append(row)
        equal = row.layers_read if row.bit_equal else "no"
        print(
            f"| {name} | {row.group_size} | {row.ours:.5f} | {row.ours_every_token:.5f} | {row.autoawq:.5f} | {row.rtn:.5f} "
            f"| {row.ratio:.3f} | {row.ratio_every_token:.3f} | {equal} |",
            flush=True,
        )
        about = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command}
        _keep({**asdict(row), **about}, arguments.results)
    return 0 if all(row.bit_equal and row.ratio <= LIMIT for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
