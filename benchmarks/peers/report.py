"""What peers/compare.py found, as figures, aims, a table and a plot. Nothing here measures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.decoder_speed import speed
from benchmarks.peers.chain import Asked
from benchmarks.peers.decoding import Facts, Timing

OURS, OURS_FP32, OURS_HALVED, TORCH, OPENVINO, LLAMA = (
    "vlm-edge int8 vision", "vlm-edge fp32 vision", "vlm-edge half the image tokens", "transformers", "OpenVINO GenAI",
    "llama.cpp",
)  # fmt: skip
COLORS = {
    OURS: "#0072b2", OURS_FP32: "#56b4e9", OURS_HALVED: "#009e73", TORCH: "#e69f00", OPENVINO: "#d55e00", LLAMA: "#9aa0a6",
}  # fmt: skip
MOST_ERROR, PREFILL_SHARE, BANDWIDTH_SHARE, TTFT_SHARE = 0.02, 1.2, 0.8, 0.7
MIB = 1 << 20


@dataclass
class Found:
    """Every value that one engine gave, in the order of the rounds. errors: of features and logits, relative to transformers."""

    facts: Facts
    vision: str
    asked: list[Asked] = field(default_factory=list)
    vision_ms: dict[int, list[float]] = field(default_factory=dict)
    timings: dict[int, list[Timing]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    """Medians. vision_ms by views; prefill, decode and share by the prompt's length; None: the engine does not do it.

    prefill, decode: tokens a second. share: of the memory bandwidth that was measured beside it. peak_bytes: of the process that
    answered a question about an image, or, of an engine that cannot, up to the end of its run.
    """

    vision_ms: Mapping[int, float]
    prefill: Mapping[int, float]
    decode: Mapping[int, float]
    share: Mapping[int, float]
    ttft_ms: float | None
    token_ms: float | None
    prompt_tokens: int | None
    peak_bytes: int
    feature_error: float | None


def figures(found: Found, new: int, bandwidth: float) -> Figures:
    """bandwidth: bytes a second."""
    speeds = {prompt: speed(each, found.facts, prompt, new, bandwidth) for prompt, each in found.timings.items()}
    timings = [timing for each in found.timings.values() for timing in each]
    return Figures(
        vision_ms={views: statistics.median(each) for views, each in found.vision_ms.items()},
        prefill={prompt: each.prefill for prompt, each in speeds.items()},
        decode={prompt: each.decode for prompt, each in speeds.items()},
        share={prompt: each.share for prompt, each in speeds.items()},
        ttft_ms=statistics.median(each.ttft_ms for each in found.asked) if found.asked else None,
        token_ms=statistics.median(each.token_ms for each in found.asked) if found.asked else None,
        prompt_tokens=found.asked[0].prompt_tokens if found.asked else None,
        peak_bytes=max(each.peak_bytes for each in found.asked or timings),
        feature_error=found.errors.get("features"),
    )


@dataclass(frozen=True)
class Aim:
    """said: the aim in words, found: what was measured; met is None where an engine that it needs was left out."""

    said: str
    found: str
    met: bool | None


def aims(of: Mapping[str, Figures]) -> list[Aim]:
    """The aims beside what was measured, of OURS."""
    ours = of.get(OURS)
    if ours is None:
        return []
    said = (
        (f"vision at int8, error under {MOST_ERROR:.0%}, no slower than OpenVINO's", OPENVINO, _vision),
        (f"prefill within {PREFILL_SHARE}x of OpenVINO's", OPENVINO, _prefill),
        ("decode no slower than llama.cpp's", LLAMA, _decode),
        (f"TTFT at most {TTFT_SHARE}x transformers'", TORCH, _ttft),
    )
    made = []
    for words, peer, judge in said:
        found, met = judge(ours, of[peer]) if peer in of else (f"{peer} was left out", None)
        made.append(Aim(words, found, met))
    least = min(ours.share.values())
    bandwidth = Aim(
        f"decode reads at {BANDWIDTH_SHARE:.0%} of memory's bandwidth or more", f"{least:.0%}", least >= BANDWIDTH_SHARE
    )
    if OURS_HALVED in of and TORCH in of:
        made.append(Aim("the same with half of the image's tokens", *_ttft(of[OURS_HALVED], of[TORCH])))
    chains = {name: each.peak_bytes for name, each in of.items() if each.ttft_ms is not None}
    lowest = min(chains, key=lambda name: chains[name])
    peak = Aim(
        "peak memory of a question about an image the lowest of all",
        f"{ours.peak_bytes / MIB:.0f} MiB; least {chains[lowest] / MIB:.0f} MiB, {lowest}",
        ours.peak_bytes <= chains[lowest] if len(chains) > 1 else None,
    )
    return [*made[:3], bandwidth, *made[3:], peak]


def _vision(ours: Figures, peer: Figures) -> tuple[str, bool]:
    error = ours.feature_error
    if error is None:
        return "no error: transformers was left out", False
    met = error < MOST_ERROR and all(ours.vision_ms[views] <= peer.vision_ms[views] for views in ours.vision_ms)
    ratios = ", ".join(f"{ours.vision_ms[v] / peer.vision_ms[v]:.2f}x for {v}" for v in ours.vision_ms)
    return f"{ratios} view(s), error {error:.2%}", met


def _prefill(ours: Figures, peer: Figures) -> tuple[str, bool]:
    ratios = {prompt: peer.prefill[prompt] / ours.prefill[prompt] for prompt in ours.prefill}
    return _by_prompt(ratios), max(ratios.values()) <= PREFILL_SHARE


def _decode(ours: Figures, peer: Figures) -> tuple[str, bool]:
    ratios = {prompt: ours.decode[prompt] / peer.decode[prompt] for prompt in ours.decode}
    return _by_prompt(ratios), min(ratios.values()) >= 1


def _ttft(ours: Figures, peer: Figures) -> tuple[str, bool]:
    assert ours.ttft_ms is not None
    assert peer.ttft_ms is not None
    ratio = ours.ttft_ms / peer.ttft_ms
    return f"{ratio:.2f}x", ratio <= TTFT_SHARE


def _by_prompt(ratios: Mapping[int, float]) -> str:
    return ", ".join(f"{ratio:.2f}x at {prompt}" for prompt, ratio in ratios.items())


def markdown(
    found: Mapping[str, Found], of: Mapping[str, Figures], bandwidth: float, about: str, notes: Sequence[str]
) -> str:
    """Precision, figures, aims and notes. about: command, date and machine."""
    views = sorted({v for each in of.values() for v in each.vision_ms})
    prompts = sorted({p for each in of.values() for p in each.prefill})
    lines = [about, "", "| engine | version | vision | LLM | lm_head | KV cache | activations |", f"|{' --- |' * 7}"]
    for name, each in found.items():
        f = each.facts
        words = (name, f.version, each.vision or "-", f.weights, f.head, f.cache, f.activations)
        lines.append(f"| {' | '.join(words)} |")
    heads = [
        *(f"vision ms, {v} view(s)" for v in views), *(f"prefill tok/s at {p}" for p in prompts),
        *(f"decode tok/s at {p}" for p in prompts), "share of bandwidth", "tokens read", "TTFT ms", "ms a token", "peak MiB",
        "error of features", "error of logits",
    ]  # fmt: skip
    lines += ["", f"| engine | {' | '.join(heads)} |", f"| --- |{' ---: |' * len(heads)}"]
    for name, each in of.items():
        shares = "-".join(f"{share:.2f}" for share in sorted(set(each.share.values()))) or "-"
        errors = (found[name].errors.get(kind) for kind in ("features", "logits"))
        cells = [
            *(_cell(each.vision_ms.get(v), ".0f") for v in views), *(_cell(each.prefill.get(p), ".1f") for p in prompts),
            *(_cell(each.decode.get(p), ".1f") for p in prompts), shares,
            _cell(each.prompt_tokens, "d"), _cell(each.ttft_ms, ".0f"),
            _cell(each.token_ms, ".1f"), f"{each.peak_bytes / MIB:.0f}", *(_cell(error, ".1e") for error in errors),
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"Memory was read at {bandwidth / 1e9:.1f} GB/s."]
    if judged := aims(of):
        met = {True: "yes", False: "no", None: "not known"}
        lines += ["", "| aim | measured | met |", "| --- | --- | --- |"]
        lines += [f"| {aim.said} | {aim.found} | {met[aim.met]} |" for aim in judged]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def panels(of: Mapping[str, Figures]) -> dict[str, dict[str, float]]:
    """What the plot shows, by title and engine: one view, the longest prompt, the whole chain."""
    longest = max((p for each in of.values() for p in each.prefill), default=0)
    chosen: dict[str, Callable[[Figures], float | None]] = {
        "vision of one view, ms": lambda each: each.vision_ms.get(1),
        f"prefill of {longest}, tok/s": lambda each: each.prefill.get(longest),
        f"decode behind {longest}, tok/s": lambda each: each.decode.get(longest),
        "image and question to first token, ms": lambda each: each.ttft_ms,
        "peak memory of that, MiB": lambda each: None if each.ttft_ms is None else each.peak_bytes / MIB,
    }
    found = {title: {name: value(each) for name, each in of.items()} for title, value in chosen.items()}
    return {t: {name: v for name, v in values.items() if v is not None} for t, values in found.items()}


def draw(of: Mapping[str, Figures], title: str, path: Path) -> None:
    """Bars, one panel a figure."""
    from vlm_edge.pipeline.figure import new_figure, save

    shown = panels(of)
    figure = new_figure(10, 9, what="the plot")
    for axes, (name, values) in zip(figure.subplots(len(shown), 1), shown.items(), strict=True):
        bars = axes.barh(list(values), list(values.values()), color=[COLORS[engine] for engine in values])
        axes.bar_label(bars, fmt="%.0f", padding=3)
        axes.set_title(name, fontsize=10, loc="left")
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=11)
    save(figure, path)
