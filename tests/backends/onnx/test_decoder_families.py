"""Decoders of every kind that the builder serves, in their graphs, against the whole model in transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("onnxruntime_genai")

from tests import tiny_decoders  # noqa: E402
from vlm_edge.backends.onnx import engine as engine_module  # noqa: E402
from vlm_edge.backends.onnx import parity  # noqa: E402
from vlm_edge.backends.onnx.decoder import build_decoder  # noqa: E402
from vlm_edge.backends.onnx.engine import OnnxEngine  # noqa: E402
from vlm_edge.backends.onnx.parity import relative_error  # noqa: E402
from vlm_edge.backends.onnx.session import available_targets  # noqa: E402
from vlm_edge.core import discover  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.core.specs import TextSpec  # noqa: E402
from vlm_edge.errors import BadInput, DamagedBundle  # noqa: E402
from vlm_edge.models.text_weights import extract_text_model  # noqa: E402

PLAIN = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2")
OTHER_FAMILIES = ("llava_next", "internvl", "idefics3", "idefics2")
QWEN_VL = ("qwen2_vl", "qwen2_5_vl")
CONTEXT = 96
LIMITS = {precision: parity.LIMITS[precision].relative_error for precision in ("fp32", "fp16")}


@dataclass(frozen=True)
class Built:
    """A model, its decoder's graph and sizes."""

    model: Any
    graph: Path
    text: TextSpec

    def engine(self, target: str = "cpu") -> OnnxEngine:
        return OnnxEngine(self.graph, self.text, target=target, threads=1, context=CONTEXT)


Make = Callable[..., Built]


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """Builds each decoder once."""
    known: dict[Any, Built] = {}

    def built(family: str, kind: str = "", *, precision: str = "fp32", **options: Any) -> Built:
        key = family, kind, precision, *sorted(options.items())
        if key not in known:
            folder = tmp_path_factory.mktemp(f"{family}-{kind}")
            model = tiny_decoders.save(family, folder / "model", kind, **options)
            checkpoint = open_checkpoint(folder / "model")
            text = discover.family_of(checkpoint.config).spec(checkpoint.config).text
            extract_text_model(checkpoint, folder / "text")
            build_decoder(folder / "text", folder / "onnx", precision=precision, text=text)
            known[key] = Built(model, folder / "onnx/model.onnx", text)
        return known[key]

    with tiny_decoders.builder_in_process():
        yield built


def transformers_logits(built: Built, embeds: Any, **options: Any) -> Any:
    """fp32 [L, V], by the whole model's own forward; eager, since no other attention has Gemma 2's soft cap."""
    built.model.set_attn_implementation("eager")
    with torch.no_grad():
        return built.model(inputs_embeds=embeds, **options).logits[0].numpy()


def fed(engine: OnnxEngine, embeds: Any, sizes: tuple[int, ...], positions: Any = None) -> list[Any]:
    """Logits after each part of a sequence."""
    rows, start, found = embeds[0].numpy(), 0, []
    for size in sizes:
        part = slice(start, start + size)
        found.append(engine.forward(rows[part], None if positions is None else positions[:, part]))
        start += size
    return found


def worst(measured: list[Any], expected: Any, sizes: tuple[int, ...]) -> float:
    ends = np.cumsum(sizes) - 1
    return max(relative_error(row, expected[end]) for row, end in zip(measured, ends, strict=True))


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", PLAIN)
def test_plain_decoders_past_their_windows_in_any_split(
    kind: str, tied: bool, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 16)
    built = make("llava", kind, tied=tied)
    assert bool(built.text.sliding_layers) is (kind in ("mistral", "qwen2", "gemma2"))
    embeds = tiny_decoders.embeddings(70)
    expected = transformers_logits(built, embeds)
    for sizes in ((70,), (40, 30), (10, 50, *[1] * 10)):
        assert worst(fed(built.engine(), embeds, sizes), _capped(kind, expected), sizes) < LIMITS["fp32"]


def _capped(kind: str, logits: Any) -> Any:
    """Gemma 2's class for text caps its logits; LLaVA's class around it forgets to. The order of tokens is the same."""
    return 30.0 * np.tanh(logits / 30.0) if kind == "gemma2" else logits


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2"])
def test_graphs_in_fp16_run_on_a_cpu(kind: str, make: Make) -> None:
    built = make("llava", kind, precision="fp16")
    embeds = tiny_decoders.embeddings(50)
    engine, sizes = built.engine(), (45, *[1] * 5)
    assert engine._float is np.float16
    error = worst(fed(engine, embeds, sizes), _capped(kind, transformers_logits(built, embeds)), sizes)
    assert 1e-5 < error < LIMITS["fp16"]


@pytest.mark.parametrize("family", OTHER_FAMILIES)
def test_the_decoders_of_other_families(family: str, make: Make) -> None:
    built = make(family)
    embeds, sizes = tiny_decoders.embeddings(30), (25, *[1] * 5)
    assert worst(fed(built.engine(), embeds, sizes), transformers_logits(built, embeds), sizes) < LIMITS["fp32"]


def prefix(length: int, prompt: int) -> Any:
    """token_type_ids: 0 for the prompt, which attends both ways, 1 for what was generated."""
    kinds = torch.ones((1, length), dtype=torch.long)
    kinds[:, :prompt] = 0
    return kinds


@pytest.mark.parametrize(("kind", "options"), [("gemma", {"tied": True}), ("gemma2", {"sliding_window": 60})])
def test_a_prompt_that_attends_both_ways(kind: str, options: dict[str, Any], make: Make) -> None:
    built = make("paligemma", kind, **options)
    embeds, sizes = tiny_decoders.embeddings(48), (40, *[1] * 8)
    expected = transformers_logits(built, embeds, token_type_ids=prefix(48, 40))
    assert worst(fed(built.engine(), embeds, sizes), expected, sizes) < LIMITS["fp32"]
    causal = transformers_logits(built, embeds)
    assert relative_error(causal[39], expected[39]) > 0.1


def test_a_prompt_that_attends_both_ways_is_read_and_forgotten_whole(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 16)
    built = make("paligemma", "gemma", tied=True)
    engine, rows = built.engine(), tiny_decoders.embeddings(48)[0].numpy()
    engine.forward(rows[:40])
    with pytest.raises(ValueError, match="in one call"):
        engine.forward(rows[40:42])
    first = engine.forward(rows[40:41])
    with pytest.raises(ValueError, match="as a whole"):
        engine.rewind(39)
    engine.rewind(40)
    np.testing.assert_array_equal(engine.forward(rows[40:41]), first)
    engine.rewind(0)
    engine.forward(rows[:20])
    engine.rewind(20)
    expected = transformers_logits(built, torch.from_numpy(rows[None, :21]), token_type_ids=prefix(21, 20))
    assert relative_error(engine.forward(rows[20:21]), expected[-1]) < LIMITS["fp32"]


def test_both_ways_end_at_the_window(make: Make) -> None:
    built = make("paligemma", "gemma2", sliding_window=60)
    engine, rows = built.engine(), tiny_decoders.embeddings(61)[0].numpy()
    engine.forward(rows[:60])
    with pytest.raises(BadInput, match="sliding window of 60"):
        engine.forward(rows[60:])
    assert engine.length == 60


def axes(length: int) -> Any:
    """Time, row and column [3, L] of text, a grid of 4 x 5 and text again: they differ by axis."""
    before, count = 6, 20
    grid = np.stack([np.zeros(count), np.arange(count) // 5, np.arange(count) % 5]) + before
    after = np.tile(np.arange(length - before - count) + before + 5, (3, 1))
    return np.concatenate([np.tile(np.arange(before), (3, 1)), grid, after], axis=1).astype(np.int64)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("family", QWEN_VL)
def test_positions_of_three_parts(family: str, tied: bool, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 16)
    built = make(family, tied=tied)
    embeds, positions, sizes = tiny_decoders.embeddings(48, 96), axes(48), (40, *[1] * 8)
    expected = transformers_logits(built, embeds, position_ids=torch.from_numpy(positions[:, None]))
    assert worst(fed(built.engine(), embeds, sizes, positions), expected, sizes) < LIMITS["fp32"]
    for axis in (1, 2):  # each of them is read, and not another in its place
        moved = positions.copy()
        moved[axis, 6:26] = 6
        assert worst(fed(built.engine(), embeds, sizes, moved), expected, sizes) > 1e-3


def test_positions_are_given_where_they_are_taken_and_nowhere_else(make: Make) -> None:
    three, plain = make("qwen2_5_vl", tied=False).engine(), make("llava", "llama", tied=False).engine()
    rows = tiny_decoders.embeddings(4, 96)[0].numpy()
    for positions in (
        None,
        np.zeros((3, 5), np.int64),
        np.zeros((2, 4), np.int64),
        np.full((3, 4), 256),
        -axes(30)[:, :4],
    ):
        with pytest.raises(ValueError, match="positions"):
            three.forward(rows, positions)
    with pytest.raises(ValueError, match="positions"):
        plain.forward(tiny_decoders.embeddings(4)[0].numpy(), np.zeros((3, 4), np.int64))
    assert three.length == plain.length == 0


@pytest.mark.gpu
@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_5_vl"])
def test_decoders_on_a_gpu(family: str, make: Make) -> None:
    if "cuda" not in available_targets():
        pytest.skip("ONNX Runtime here has no CUDA provider")
    built = make(family, precision="fp16", tied=False)
    embeds, sizes = tiny_decoders.embeddings(48, built.text.hidden), (40, *[1] * 8)
    positions = axes(48) if built.text.mrope_sections else None
    options: dict[str, Any] = {"token_type_ids": prefix(48, 40)} if built.text.bidirectional_prefix else {}
    if positions is not None:
        options["position_ids"] = torch.from_numpy(positions[:, None])
    measured = fed(built.engine("cuda"), embeds, sizes, positions)
    assert worst(measured, transformers_logits(built, embeds, **options), sizes) < LIMITS["fp16"]


def test_graphs_whose_inputs_would_not_be_fed_are_refused(make: Make) -> None:
    three, plain = make("qwen2_5_vl", tied=False), make("llava", "llama", tied=False)
    bare = TextSpec(**{name: getattr(three.text, name) for name in BARE})
    with pytest.raises(DamagedBundle, match="takes position_ids too"):
        OnnxEngine(three.graph, bare, target="cpu", threads=1, context=8)
    sizes = {name: getattr(plain.text, name) for name in BARE}
    with pytest.raises(DamagedBundle, match="has no position_ids"):
        OnnxEngine(plain.graph, TextSpec(**sizes, mrope_sections=(2, 3, 3)), target="cpu", threads=1, context=8)


BARE = ("hidden", "layers", "heads", "kv_heads", "head_dim", "intermediate", "vocab", "max_positions")
