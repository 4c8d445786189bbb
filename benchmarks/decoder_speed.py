"""Prefill and decode of int4 decoders, tokens a second: this project's, llama.cpp's Q4_0 and OpenVINO's int4.

    python -m benchmarks.shapes make llava-1.1b CHECKPOINT
    vlm-edge quantize CHECKPOINT BUNDLE --method rtn --target cpu --lm-head int8
    sh benchmarks/peers/llama_cpp/setup.sh .venv-llama
    sh benchmarks/peers/openvino/setup.sh .venv-openvino --decoder
    python -m benchmarks.decoder_speed CHECKPOINT BUNDLE... --llama .venv-llama/bin/python --openvino .venv-openvino/bin/python

Every engine waits in a process of its own and they take turns. Bandwidth is what threads reach that only read; they take their turn
too. A token's bytes are decoder, lm_head and the KV cache at the middle of what is decoded. --models keeps the peers' converted
models. Peak memory is of the whole process up to the end of the run, with mapped pages of files where an engine maps its weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.engines import ROOT, Engine
from benchmarks.peers.decoding import Facts, Timing

PROMPTS = (64, 640)
NEW_TOKENS = 32
CHECKED_PROMPT = 64


@dataclass(frozen=True)
class Speed:
    """Medians over runs, in tokens a second; low, high: of decode. share: of the bandwidth, by what decoding reads."""

    prefill: float
    decode: float
    low: float
    high: float
    share: float


def speed(timings: Sequence[Timing], facts: Facts, prompt: int, new: int, bandwidth: float) -> Speed:
    """Of one engine at one length; bandwidth in bytes a second."""
    decode = sorted(new / timing.decode for timing in timings)
    median = statistics.median(decode)
    read = facts.read_bytes + facts.position_bytes * (prompt + new / 2)
    prefill = prompt / statistics.median(timing.prefill for timing in timings)
    return Speed(prefill, median, decode[0], decode[-1], median * read / bandwidth)


def main(arguments: argparse.Namespace) -> None:
    threads = arguments.threads
    with tempfile.TemporaryDirectory(dir=arguments.checkpoint.parent) as name:
        models = arguments.models or Path(name)
        commands = _commands(arguments, models)
        engines = [Engine(name, command, threads) for name, command in commands.items()]
        reader = Engine("bandwidth", [sys.executable, "-m", "benchmarks.memory_read", str(threads)], threads)
        facts = {engine.name: Facts(**json.loads(engine.version)) for engine in engines}
        outputs = [_logits(engine, Path(name) / "logits.npy") for engine in engines]
        timings: dict[tuple[str, int], list[Timing]] = {}
        read = []
        for _ in range(arguments.repeats):
            for prompt in PROMPTS:
                read.append(float(reader.ask("read")))
                for engine in engines:
                    answer = Timing(**json.loads(engine.ask(f"run {prompt} {NEW_TOKENS}")))
                    timings.setdefault((engine.name, prompt), []).append(answer)
        for engine in (*engines, reader):
            engine.close()
    _print(facts, outputs, timings, statistics.median(read), arguments)


def _commands(arguments: argparse.Namespace, models: Path) -> dict[str, list[str]]:
    threads = str(arguments.threads)
    commands = {
        f"vlm-edge {bundle.name}": [sys.executable, "-m", "benchmarks.peers.onnx_decoder", str(bundle), threads]
        for bundle in arguments.bundles
    }
    peers = {
        "llama.cpp": (arguments.llama, "llama_cpp", models / "q4_0.gguf"),
        "OpenVINO": (arguments.openvino, "openvino", models / "openvino"),
    }
    for name, (python, package, model) in peers.items():
        if python is None:
            continue
        if not model.exists():
            convert(arguments.checkpoint, models, [str(python), "-m", f"benchmarks.peers.{package}.convert"], model)
        commands[name] = [str(python), "-m", f"benchmarks.peers.{package}.decoder", str(model), threads]
    return commands


def convert(checkpoint: Path, models: Path, command: list[str], model: Path, *more: str) -> None:
    """With the text model as a checkpoint of its own, which is all that a peer reads. more: arguments behind the two folders."""
    from vlm_edge.core.checkpoint import open_checkpoint
    from vlm_edge.models.text_weights import extract_text_model

    text = models / "text"
    models.mkdir(parents=True, exist_ok=True)
    if not text.exists():
        extract_text_model(open_checkpoint(checkpoint), text)
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(text), str(model), *more], check=True, env=settings, stdout=subprocess.DEVNULL)


def _logits(engine: Engine, file: Path) -> np.ndarray:
    engine.ask(f"logits {CHECKED_PROMPT} {file}")
    return np.load(file).reshape(-1).astype(np.float64)


def _print(
    facts: Mapping[str, Facts], outputs: Sequence[np.ndarray], timings: Mapping[tuple[str, int], Sequence[Timing]],
    bandwidth: float, arguments: argparse.Namespace,
) -> None:  # fmt: skip
    print(
        "| engine | version | weights | lm_head | KV cache | activations | weights read | KV a position | peak MiB | cosine |"
    )
    print("| --- | --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: |")
    for (name, fact), logits in zip(facts.items(), outputs, strict=True):
        cosine = float(logits @ outputs[0] / np.linalg.norm(logits) / np.linalg.norm(outputs[0]))
        peak = max(timing.peak_bytes for prompt in PROMPTS for timing in timings[name, prompt])
        words = f"{fact.version} | {fact.weights} | {fact.head} | {fact.cache} | {fact.activations}"
        read = f"{fact.read_bytes / 1e6:.0f} MB | {fact.position_bytes} B"
        print(f"| {name} | {words} | {read} | {peak / 2**20:.0f} | {cosine:.4f} |")
    print(f"\nCosine: of a prompt's logits with the first engine's. Medians of {arguments.repeats}, {NEW_TOKENS} tokens decoded, "
          f"{arguments.threads} threads; memory read at {bandwidth / 1e9:.1f} GB/s.\n")  # fmt: skip
    first = next(iter(facts))
    print(f"| engine | prompt | prefill tok/s | decode tok/s | spread of decode | share of bandwidth | {first} / it |")
    print("| --- | ---: | ---: | ---: | --- | ---: | --- |")
    for prompt in PROMPTS:
        found = {
            name: speed(timings[name, prompt], fact, prompt, NEW_TOKENS, bandwidth) for name, fact in facts.items()
        }
        ours = found[first]
        for name, it in found.items():
            print(
                f"| {name} | {prompt} | {it.prefill:.1f} | {it.decode:.1f} | {it.low:.1f}-{it.high:.1f} | {it.share:.2f} "
                f"| prefill {ours.prefill / it.prefill:.2f}, decode {ours.decode / it.decode:.2f} |"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+", help="quantized from it")
    parser.add_argument("--llama", type=Path, help="interpreter of the environment that has llama.cpp")
    parser.add_argument("--openvino", type=Path, help="interpreter of the environment that has OpenVINO")
    parser.add_argument("--models", type=Path, help="folder to keep the peers' models in, and to look for them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    main(parser.parse_args())
