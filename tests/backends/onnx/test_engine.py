"""The decode engine against transformers on the same random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.backends.onnx.conftest import Decoder
from vlm_edge.backends.onnx import engine as engine_module
from vlm_edge.backends.onnx.engine import OnnxEngine
from vlm_edge.errors import BadInput, DamagedBundle

CONTEXT = 96


@pytest.fixture
def engine(decoder: Decoder) -> OnnxEngine:
    return OnnxEngine(decoder.graph, decoder.text, target="cpu", threads=1, context=CONTEXT)


def prompt(length: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(length, 128)).astype(np.float32)


def reference(decoder: Decoder, embeds: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return decoder.torch_model(inputs_embeds=torch.from_numpy(embeds)[None]).logits[0, -1].numpy()


@pytest.mark.parametrize("sizes", [(40,), (13, 27), (1,) * 40, (38, 1, 1)])
def test_any_split_of_a_prompt_gives_the_logits_of_transformers(
    decoder: Decoder, engine: OnnxEngine, sizes: tuple[int, ...]
) -> None:
    embeds = prompt(40)
    start = 0
    for size in sizes:
        logits = engine.forward(embeds[start : start + size])
        start += size
    np.testing.assert_allclose(logits, reference(decoder, embeds), rtol=1e-3, atol=1e-4)
    assert engine.length == 40


def test_long_prompts_are_read_in_chunks(decoder: Decoder, engine: OnnxEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PREFILL_CHUNK", 16)
    embeds = prompt(70)
    np.testing.assert_allclose(engine.forward(embeds), reference(decoder, embeds), rtol=1e-3, atol=1e-4)


def test_rewind_forgets_what_came_after(decoder: Decoder, engine: OnnxEngine) -> None:
    shared, first, second = prompt(30), prompt(9, 1), prompt(5, 2)
    engine.forward(shared)
    engine.forward(first)
    engine.rewind(30)
    logits = engine.forward(second)
    np.testing.assert_allclose(logits, reference(decoder, np.concatenate([shared, second])), rtol=1e-3, atol=1e-4)


def test_logits_stay_as_they_were_when_more_is_read(engine: OnnxEngine) -> None:
    first = engine.forward(prompt(8))
    kept = first.copy()
    assert not np.array_equal(engine.forward(prompt(1, 1)), kept)
    np.testing.assert_array_equal(first, kept)


def test_greedy_decoding_equals_generate(decoder: Decoder, engine: OnnxEngine) -> None:
    import torch

    ids = torch.tensor([[5, 9, 77, 3]])
    expected = decoder.torch_model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )[0, 4:].tolist()
    table = decoder.torch_model.get_input_embeddings().weight.detach().numpy()
    logits = engine.forward(table[ids[0].numpy()])
    made = []
    for _ in range(12):
        made.append(int(np.argmax(logits)))
        logits = engine.forward(table[made[-1:]])
    assert made == expected


def test_the_context_is_never_exceeded(engine: OnnxEngine) -> None:
    engine.forward(prompt(CONTEXT))
    with pytest.raises(BadInput, match="context of 96") as caught:
        engine.forward(prompt(1))
    assert "--max-tiles" in caught.value.remedy
    assert engine.length == CONTEXT


def test_rewind_refuses_positions_that_were_never_read(engine: OnnxEngine) -> None:
    engine.forward(prompt(4))
    with pytest.raises(ValueError, match="rewind"):
        engine.rewind(5)


def test_a_graph_that_is_no_decoder_is_refused(tmp_path: Path, decoder: Decoder) -> None:
    import onnx
    from onnx import TensorProto, helper

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", value[:1], value[1:])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    with pytest.raises(DamagedBundle, match="inputs_embeds"):
        OnnxEngine(path, decoder.text, target="cpu", threads=1, context=8)


def test_a_decoder_with_logits_of_more_than_one_position_is_refused(tmp_path: Path, decoder: Decoder) -> None:
    import onnx
    from onnx import helper

    graph = onnx.load(decoder.graph)
    (last,) = [node for node in graph.graph.node if "logits" in node.output]
    last.output[:] = ["one"]
    graph.graph.node.append(helper.make_node("Concat", ["one", "one"], ["logits"], axis=1))
    (declared,) = [value for value in graph.graph.output if value.name == "logits"]
    declared.type.tensor_type.shape.dim[1].dim_value = 2
    onnx.save(graph, tmp_path / "model.onnx")
    with pytest.raises(DamagedBundle, match=r"has logits \[\w+, 2, 320\]"):
        OnnxEngine(tmp_path / "model.onnx", decoder.text, target="cpu", threads=1, context=8)


def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, decoder: Decoder) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a graph")
    with pytest.raises(DamagedBundle, match="cannot be loaded"):
        OnnxEngine(path, decoder.text, target="cpu", threads=1, context=8)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ({"kv_heads": 4}, "past_key_values"),
        ({"hidden": 256}, "inputs_embeds"),
        ({"vocab": 321}, "logits"),
        ({"layers": 3}, "past_key_values.2"),
        ({"layers": 1}, "past_key_values.1"),
    ],
)
def test_a_decoder_of_other_sizes_is_refused_before_anything_is_fed(
    decoder: Decoder, sizes: dict[str, int], named: str
) -> None:
    with pytest.raises(DamagedBundle, match=named) as caught:
        OnnxEngine(decoder.graph, replace(decoder.text, **sizes), target="cpu", threads=1, context=8)
    assert "\n" not in caught.value.message


def test_sizes_that_only_running_shows_are_an_error_of_the_bundle(
    decoder: Decoder, capfd: pytest.CaptureFixture[str]
) -> None:
    engine = OnnxEngine(decoder.graph, replace(decoder.text, head_dim=64), target="cpu", threads=1, context=8)
    with pytest.raises(DamagedBundle, match="does not fit") as caught:
        engine.forward(prompt(4))
    assert "\n" not in caught.value.message
    assert capfd.readouterr().err == ""
