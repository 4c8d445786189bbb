"""Colours of a plan's parts, the same in the page and in the chart: what belongs together has one hue."""

from __future__ import annotations

from collections.abc import Mapping

COLORS: Mapping[str, str] = {
    "runtime": "#9aa0a6",
    "llm.weights": "#1f5aa6",
    "llm.embedding": "#4f86c6",
    "llm.lm_head": "#8fb4de",
    "llm.positions": "#b9cfe9",
    "llm.packed": "#6a8fbd",
    "weights.repacked": "#c3d3e6",
    "vision.weights": "#b5541c",
    "vision.packed": "#c87a48",
    "projector.weights": "#d98a4e",
    "image.pixels": "#e8c39e",
    "vision.activations": "#e8743b",
    "visual_embeddings": "#f2b705",
    "image.decode": "#c9b458",
    "image.views": "#f1dcc4",
    "image.readers": "#e0d090",
    "runtime.text": "#bcc1c6",
    "kv_cache": "#2e8b57",
    "kv_cache.cross": "#6fbf8f",
    "prefill.activations": "#7a5aa6",
    "logits": "#a98fcb",
    "decode.buffers": "#c8b6e2",
    "reserve": "#c4c7cb",
    "margin": "#e3e5e8",
}
OTHER = "#555555"
BUDGET = "#c1121f"


def color_of(name: str) -> str:
    """The colour of an item by its name."""
    return COLORS.get(name, OTHER)
