"""Speed and memory of a bundle on this machine: the first image of a process apart from those that follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from vlm_edge import __version__
from vlm_edge.core import host
from vlm_edge.core.bundle import Manifest
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.answer import Answer
from vlm_edge.pipeline.answering.encoders import decoder_target
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.question_plan import plan, source_header
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.machine import PACKAGES, cpu_name, installed, query_gpus
from vlm_edge.pipeline.measuring.bandwidth import last_cache_bytes, read_bandwidth

STAGES = ("preprocess", "saliency", "vision", "reduce", "prefill")
"""What happens before the first token, in order."""
WARMUP, REPEATS, NEW_TOKENS = 1, 5, 32
_NOT_FOR_RUNNING = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime-genai", "matplotlib", "typer")


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    def to_json(self) -> dict[str, Any]:
        """Median, least, most, and every value."""
        rounded = [round(value, 3) for value in self.values]
        return {"median": round(self.median, 3), "min": min(rounded), "max": max(rounded), "values": rounded}


@dataclass(frozen=True)
class Sample:
    """One question about an image that nothing is remembered of. Milliseconds.

    stages: before the first token.  ttft_ms: from the question to the first token, as a caller sees it.  token_ms: from one
    token to the next, over all but the first.
    """

    stages: Mapping[str, float]
    ttft_ms: float
    token_ms: float
    answer: Answer


@dataclass(frozen=True)
class Decode:
    """What one token reads, and how that compares with what memory delivers.

    weights_bytes: the decoder's graph.  kv_bytes: of the cache at the middle of the answer.  bandwidth: bytes a second that
    were read here; None where the decoder is not in this machine's main memory.  in_cache: whether the CPU's caches hold all
    of it, so that memory is no limit.
    """

    weights_bytes: int
    kv_bytes: int
    bandwidth: float | None
    in_cache: bool

    @property
    def bytes_per_token(self) -> int:
        """Weights and cache."""
        return self.weights_bytes + self.kv_bytes

    def share(self, token_ms: float) -> float | None:
        """Of the bandwidth, for a token that takes so long."""
        return None if self.bandwidth is None else 1000 * self.bytes_per_token / token_ms / self.bandwidth


@dataclass(frozen=True)
class Benched:
    """Everything that was measured. planned_peak_bytes: the larger of the plans of cold and warm questions."""

    manifest: Manifest
    device: str
    threads: int
    image: str
    image_px: tuple[int, int]
    load_ms: float
    cold: Sample
    warm: tuple[Sample, ...]
    warmup: int
    decode: Decode
    planned_peak_bytes: int
    measured_peak_bytes: int
    versions: Mapping[str, str]
    machine: Mapping[str, Any]

    def spread(self, of: Callable[[Sample], float]) -> Spread:
        """Of the warm samples."""
        return Spread(tuple(of(sample) for sample in self.warm))

    @property
    def stage_spreads(self) -> dict[str, Spread]:
        """By stage, and TTFT."""
        found = {name: self.spread(lambda s, n=name: s.stages[n]) for name in STAGES}  # type: ignore[misc]
        return found | {"ttft": self.spread(lambda s: s.ttft_ms)}

    def precision(self, role: str) -> str:
        """Dtype of the graph that runs here; `unknown` in a bundle that does not say."""
        target = decoder_target(self.device) if role == "llm.graph" else self.device
        found = (a.dtype for a in self.manifest.artifacts if a.role == role and a.target in (target, "any"))
        return next(found, "") or "unknown"

    def to_json(self) -> dict[str, Any]:
        """The keys of `vlm-edge bench --json`."""
        tokens = self.cold.answer.tokens
        token_ms = self.spread(lambda s: s.token_ms)
        share = self.decode.share(token_ms.median)
        prefill = self.stage_spreads["prefill"].median
        return {
            "model": self.manifest.name,
            "family": self.manifest.model.family,
            "llm_precision": self.precision("llm.graph"),
            "vision_precision": self.precision("vision.graph"),
            "device": self.device,
            "threads": self.threads,
            "batch": 1,
            "image": self.image,
            "image_px": list(self.image_px),
            "tiles": len(self.cold.answer.tiles),
            "tokens": {
                "visual_before": tokens.visual_before, "visual_after": tokens.visual_after, "prefill": tokens.prompt,
                "generated": tokens.generated,
            },
            "cold_ms": {"load": round(self.load_ms, 3)}
            | {name: round(value, 3) for name, value in self.cold.stages.items()}
            | {"ttft": round(self.cold.ttft_ms, 3), "per_token": round(self.cold.token_ms, 3)},
            "warm_ms": {name: spread.to_json() for name, spread in self.stage_spreads.items()}
            | {"per_token": token_ms.to_json()},
            "prefill_tokens_per_s": round(1000 * tokens.prompt / prefill, 2),
            "tokens_per_s": round(1000 / token_ms.median, 2),
            "bandwidth": {
                "bytes_per_token": self.decode.bytes_per_token,
                "weights_bytes": self.decode.weights_bytes,
                "kv_bytes": self.decode.kv_bytes,
                "measured_bytes_per_s": None if self.decode.bandwidth is None else round(self.decode.bandwidth),
                "share": None if share is None else round(share, 4),
                "in_cache": self.decode.in_cache,
            },
            "memory": {"planned_peak_bytes": self.planned_peak_bytes, "measured_peak_bytes": self.measured_peak_bytes},
            "settings": {"warmup": self.warmup, "repeats": len(self.warm), "new_tokens": tokens.generated},
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "date": date.today().isoformat(),
        }  # fmt: skip


def default_image() -> Path:
    """A page that ships with vlm-edge, 1322 x 1344 px."""
    return resource_dir("calibration") / "pages" / "receipt.png"


def check_settings(*, repeats: int, warmup: int, new_tokens: int) -> None:
    """Raise BadInput for numbers with which nothing can be measured."""
    for option, value, least in (
        ("--repeats", repeats, 1),
        ("--warmup", warmup, 0),
        ("--max-new-tokens", new_tokens, 2),
    ):
        if value < least:
            raise BadInput(f"{option} {value} is not allowed", remedy=f"use {least} or more")


def bench(
    load: Callable[[], Pipeline],
    image: Path,
    question: str,
    options: AskOptions,
    *,
    threads: int,
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    on_run: Callable[[], None] = lambda: None,
) -> Benched:
    """Load a bundle and ask it the same question again and again, each time as if the image were new.

    load: opens the pipeline; its time is the cold start's.  options: max_new_tokens is taken as the number of tokens to decode,
    whatever the model says.  The first question is the cold one, `warmup` more are dropped, `repeats` are kept. Memory is
    read before the bandwidth is measured, since that takes some of its own.
    Raises whatever `Pipeline.ask` raises.
    """
    check_settings(repeats=repeats, warmup=warmup, new_tokens=options.max_new_tokens or NEW_TOKENS)
    options = replace(options, max_new_tokens=options.max_new_tokens or NEW_TOKENS, ignore_eos=True)
    started = time.perf_counter()
    pipeline = load()
    load_ms = 1000 * (time.perf_counter() - started)
    samples = []
    for _ in range(1 + warmup + repeats):
        samples.append(_sample(pipeline, image, question, options))
        pipeline.forget()
        on_run()
    cold, warm = samples[0], tuple(samples[1 + warmup :])
    peak = host.peak_rss_bytes()
    header = source_header(image, options.max_pixels or pipeline.bundle.manifest.limits.max_pixels)
    return Benched(
        manifest=pipeline.bundle.manifest,
        device=pipeline.device,
        threads=threads,
        image=image.name,
        image_px=(header.width, header.height),
        load_ms=load_ms,
        cold=cold,
        warm=warm,
        warmup=warmup,
        decode=_decode(pipeline, image, options, cold.answer, threads),
        planned_peak_bytes=max(sample.answer.planned_peak_bytes for sample in samples),
        measured_peak_bytes=peak,
        versions=_versions(),
        machine=_machine(pipeline.device),
    )


def _sample(pipeline: Pipeline, image: Path, question: str, options: AskOptions) -> Sample:
    arrivals: list[float] = []
    started = time.perf_counter()
    answer = pipeline.ask(image, question, options, on_text=lambda _: arrivals.append(time.perf_counter()))
    return Sample(
        stages={name: answer.timings_ms[name] for name in STAGES},
        ttft_ms=1000 * (arrivals[0] - started),
        token_ms=_per_token(arrivals[: answer.tokens.generated]),
        answer=answer,
    )


def _per_token(arrivals: Sequence[float]) -> float:
    return 1000 * (arrivals[-1] - arrivals[0]) / (len(arrivals) - 1)


def _decode(pipeline: Pipeline, image: Path, options: AskOptions, answer: Answer, threads: int) -> Decode:
    manifest, target = pipeline.bundle.manifest, decoder_target(pipeline.device)
    header = source_header(image, options.max_pixels or manifest.limits.max_pixels)
    planned = plan(pipeline.bundle, options, images=(header,), budget_bytes=None)
    cache = sum(item.bytes for item in planned.items if item.name == "kv_cache")
    length = answer.tokens.prompt + answer.tokens.generated // 2
    weights = sum(a.bytes for a in manifest.artifacts if a.role.startswith("llm.graph") and a.target in (target, "any"))
    kv = cache * length // manifest.limits.max_model_len
    held = last_cache_bytes()
    here = target == "cpu"
    return Decode(
        weights_bytes=weights,
        kv_bytes=kv,
        bandwidth=read_bandwidth(threads=threads) if here else None,
        in_cache=here and held is not None and weights + kv < held,
    )


def _versions() -> dict[str, str]:
    """Of what runs: nothing that only builds bundles or draws."""
    names = [name for name in PACKAGES if name not in _NOT_FOR_RUNNING]
    return {"vlm-edge": __version__, **installed(names)}


def _machine(device: str) -> dict[str, Any]:
    gpus = [] if device == "cpu" else [gpu.name for gpu in query_gpus()[0]]
    return {"cpu": cpu_name(), "cores": host.real_cores(), "gpus": gpus, "total_bytes": host.total_bytes()}
