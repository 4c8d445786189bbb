"""A checkpoint's decoder into a bundle, against transformers, and what is refused before and after the work."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import exportable, tiny_decoders
from vlm_edge.backends.onnx import decoder, decoder_parity, parity
from vlm_edge.backends.onnx.engine import OnnxEngine
from vlm_edge.core import shards
from vlm_edge.core.bundle import Bundle, open_bundle, verify_hashes
from vlm_edge.core.embedding import EmbeddingTable
from vlm_edge.errors import BadInput, CheckFailed, DamagedBundle, MissingDependency
from vlm_edge.models import weights
from vlm_edge.pipeline.exporting import export, llm
from vlm_edge.pipeline.exporting.export import ExportOptions, export_model

LLM = ExportOptions(components=("llm",), threads=1)
ALL = ExportOptions(components=("vision", "projector", "llm"), threads=1)
CONTEXT = 64
HEAD_DIM = tiny_decoders.HEAD_DIM
PATHS = [
    "llm/cpu/model.onnx",
    "llm/cpu/model.onnx.data",
    "llm/cpu/references.npz",
    "llm/embed.safetensors",
]


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Tracing and starting the builder take seconds, and these tests are about what surrounds them."""
    with exportable.exporting_once(), tiny_decoders.builder_in_process():
        yield


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint, `tiny`, and the bundle `out` of its decoder."""
    folder = tmp_path_factory.mktemp("llava")
    tiny_decoders.save("llava", folder / "tiny", "llama")
    export_model(folder / "tiny", folder / "out", LLM)
    return folder


@pytest.fixture
def copy(llava: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(llava, tmp_path / "copy"))


def engine(bundle: Bundle, target: str = "cpu") -> OnnxEngine:
    graph = bundle.path("llm.graph", target=target)
    return OnnxEngine(graph, bundle.manifest.model.text, target="cpu", threads=1, context=CONTEXT)


def generated(bundle: Bundle, tokens: list[int], count: int, scale: float, target: str = "cpu") -> list[int]:
    """Greedy tokens from the bundle's table and graph alone."""
    table, runs = EmbeddingTable(bundle.path("llm.embedding")), engine(bundle, target)
    found: list[int] = []
    step = tokens
    for _ in range(count):
        step = [int(np.argmax(runs.forward(table.rows(step) * np.float32(scale))))]
        found += step
    return found


@pytest.mark.parametrize(
    ("family", "kind", "scale", "dtype"),
    [
        ("llava", "mistral", 1, "float32"),
        ("llava", "llama", 1, "bfloat16"),
        ("paligemma", "gemma", 60**0.5, "bfloat16"),  # 1 + w of its norms does not fit bf16
        ("paligemma", "gemma2", 60**0.5, "bfloat16"),
    ],
)
def test_a_bundles_decoder_says_what_transformers_generates(
    family: str, kind: str, scale: float, dtype: str, tmp_path: Path
) -> None:
    window = {"sliding_window": 60} if kind == "gemma2" else {}
    model = tiny_decoders.vlm(family, kind, tied=kind == "gemma", **window).to(getattr(torch, dtype))
    exportable.save_model(family, model, tmp_path / "tiny")
    steps: list[str] = []
    done = export_model(tmp_path / "tiny", tmp_path / "out", LLM, on_step=steps.append)
    assert steps == list(llm.STEPS)
    bundle = open_bundle(tmp_path / "out")
    verify_hashes(bundle, force=True)
    assert [artifact.path for artifact in done.artifacts] == PATHS
    assert done.artifacts[-1].dtype == {"float32": "fp32", "bfloat16": "bf16"}[dtype]
    prompt = [5, 9, 11, 40, 17, 98, 33]
    ids = torch.tensor([prompt])
    options: dict[str, Any] = {"token_type_ids": torch.zeros_like(ids)} if family == "paligemma" else {}
    with torch.no_grad():
        expected = model.float().generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, min_new_tokens=24, do_sample=False,
            eos_token_id=None, pad_token_id=0, **options,
        )  # fmt: skip
    assert generated(bundle, prompt, 24, scale) == expected[0, len(prompt) :].tolist()


def test_the_bundle_records_what_it_was_made_with(llava: Path) -> None:
    bundle = open_bundle(llava / "out")
    manifest = bundle.manifest
    assert {"onnxruntime-genai", "torch", "transformers", "vlm-edge"} <= manifest.tools.keys()
    assert {*manifest.source} == {"config", "tensors", "text"}
    assert [(row.component, row.metric, row.ok) for row in manifest.parity] == [
        ("llm/cpu", "cosine", True),
        ("llm/cpu", "relative_error", True),
    ]
    assert bundle.targets() == ("cpu",)
    listed = {artifact.path for artifact in manifest.artifacts}
    assert listed == {*PATHS, "config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    left = {path.relative_to(bundle.root).as_posix() for path in bundle.root.rglob("*") if path.is_file()}
    assert left == listed | {"manifest.json", ".lock"}


def test_stored_references_check_the_graph_without_torch(llava: Path) -> None:
    bundle = open_bundle(llava / "out")
    stored = decoder_parity.load(bundle.path("llm.references", target="cpu"))
    assert decoder_parity.compare(engine(bundle), stored, "fp32").ok
    other = replace(stored, logits=stored.logits * np.float32(1.001))
    assert not decoder_parity.compare(engine(bundle), other, "fp32").ok


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_towers_bytes_are_not_read(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_decoders.save(family, tmp_path / "tiny")
    names: list[str] = []
    read, chunks = weights.read_into, shards._chunks
    monkeypatch.setattr(weights, "read_into", lambda tensor, into: (names.append(tensor.name), read(tensor, into)))
    monkeypatch.setattr(shards, "_chunks", lambda tensor: (names.append(tensor.name), chunks(tensor))[1])
    export_model(tmp_path / "tiny", tmp_path / "out", LLM)
    assert len(names) > 50
    assert [name for name in names if any(part in name for part in ("tower", "projector", "visual"))] == []


@pytest.mark.slow
def test_tower_and_decoder_in_one_go_or_one_after_the_other(copy: Path) -> None:
    steps: list[str] = []
    export_model(copy / "tiny", copy / "both", ALL, on_step=steps.append)
    assert steps == [*export.STEPS, *llm.STEPS]
    both = open_bundle(copy / "both")
    verify_hashes(both, force=True)
    export_model(copy / "tiny", copy / "out", ExportOptions(threads=1))  # the tower after the decoder
    export_model(copy / "tiny", copy / "turned", ExportOptions(threads=1))
    export_model(copy / "tiny", copy / "turned", LLM)
    for other in (open_bundle(copy / "out"), open_bundle(copy / "turned")):
        assert other.manifest.source == both.manifest.source
        assert {*other.manifest.source} == {"config", "tensors", "vision", "text"}
        assert [artifact.path for artifact in other.manifest.artifacts] == [a.path for a in both.manifest.artifacts]


def test_a_second_target_keeps_the_first_and_another_precision_replaces_it(copy: Path) -> None:
    before = (copy / "out/llm/cpu/model.onnx").read_bytes()
    table = (copy / "out/llm/embed.safetensors").read_bytes()
    export_model(copy / "tiny", copy / "out", replace(LLM, target="cuda", dtype="fp16"))
    bundle = open_bundle(copy / "out")
    assert bundle.targets() == ("cpu", "cuda")
    assert (copy / "out/llm/cpu/model.onnx").read_bytes() == before
    assert (copy / "out/llm/embed.safetensors").read_bytes() == table
    expected = generated(bundle, [5, 9, 11], 8, 1)
    assert generated(bundle, [5, 9, 11], 8, 1, "cuda") == expected
    export_model(copy / "tiny", copy / "out", replace(LLM, dtype="fp16"))
    bundle = open_bundle(copy / "out")
    verify_hashes(bundle, force=True)
    assert [a.dtype for a in bundle.manifest.artifacts if a.role == "llm.graph"] == ["fp16", "fp16"]
    assert [row.component for row in bundle.manifest.parity] == ["llm/cuda"] * 2 + ["llm/cpu"] * 2
    assert generated(bundle, [5, 9, 11], 8, 1) == expected


def tuned(copy: Path, part: str) -> Path:
    """A fine-tune: the same config, names and shapes, one tensor of one part changed."""
    shutil.copytree(copy / "tiny", copy / "tuned")
    tensors = {name: tensor.clone() for name, tensor in load_file(copy / "tiny/model.safetensors").items()}
    name = next(name for name in tensors if part in name and tensors[name].ndim == 2)
    tensors[name][0, 0] += 1
    save_file(tensors, copy / "tuned/model.safetensors", metadata={"format": "pt"})
    return copy / "tuned"


@pytest.mark.usefixtures("no_builder")
@pytest.mark.parametrize("part", ["embed_tokens", "layers.4.mlp", "lm_head"])
def test_a_fine_tune_with_a_frozen_tower_is_not_mixed_in(part: str, copy: Path) -> None:
    before = exportable.everything(copy / "out")
    with pytest.raises(BadInput, match="another model"):
        export_model(tuned(copy, part), copy / "out", LLM)
    with pytest.raises(BadInput, match="another model"):  # its tower would be the very same
        export_model(copy / "tuned", copy / "out", ExportOptions(threads=1))
    assert exportable.everything(copy / "out") == before


@pytest.mark.usefixtures("no_builder")
def test_a_decoder_is_not_put_beside_another_fine_tunes_tower(copy: Path) -> None:
    export_model(copy / "tiny", copy / "seen", ExportOptions(threads=1))
    before = exportable.everything(copy / "seen")
    with pytest.raises(BadInput, match="another model"):
        export_model(tuned(copy, "vision_tower"), copy / "seen", LLM)
    assert exportable.everything(copy / "seen") == before


@pytest.fixture
def no_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where a refusal would come only after minutes of work."""
    monkeypatch.setattr(decoder, "build_decoder", lambda *_, **__: pytest.fail("the builder was started"))


@pytest.mark.usefixtures("no_builder")
@pytest.mark.parametrize(
    ("options", "message", "remedy"),
    [
        (replace(LLM, dtype="int8"), "no int8 decoder", "vlm-edge quantize"),
        (replace(LLM, dtype="int4"), "no int4 decoder", "vlm-edge quantize"),
        (replace(ALL, dtype="int8"), "no int8 decoder", "vlm-edge quantize"),
        (replace(LLM, target="tensorrt"), "no decoder for tensorrt", "--target cpu or cuda"),
        (replace(LLM, target="cuda"), "written for fp16", "--dtype fp16"),
    ],
)
def test_decoders_that_are_not_exported(options: ExportOptions, message: str, remedy: str, copy: Path) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        export_model(copy / "tiny", copy / "new", options)
    assert remedy in caught.value.remedy
    assert not (copy / "new").exists()


@pytest.mark.usefixtures("no_builder")
def test_a_decoder_of_an_architecture_that_does_not_build(tmp_path: Path) -> None:
    tiny_decoders.save("llava", tmp_path / "tiny", "phi3", head_dim=HEAD_DIM, hidden_size=6 * HEAD_DIM)
    with pytest.raises(BadInput, match="phi3 decoders cannot be exported") as caught:
        export_model(tmp_path / "tiny", tmp_path / "out", LLM)
    assert "vision,projector" in caught.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("no_builder")
def test_heads_that_onnx_runtime_does_not_have(tmp_path: Path) -> None:
    tiny_decoders.save("llava", tmp_path / "tiny", "llama", head_dim=10)
    with pytest.raises(BadInput, match="no heads of 10 values"):
        export_model(tmp_path / "tiny", tmp_path / "out", LLM)


def drop_the_head(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    kept = {name: tensor.clone() for name, tensor in tensors.items() if "lm_head" not in name}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})


def quantize(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))


def cut(model: Path) -> None:
    with (model / "model.safetensors").open("r+b") as stream:
        stream.truncate(100_000)


@pytest.mark.usefixtures("no_builder")
@pytest.mark.parametrize(
    ("damage", "message"),
    [(drop_the_head, "lacks 1 tensor: 'lm_head.weight'"), (quantize, "is quantized"), (cut, "truncated")],
)
def test_bad_checkpoints(damage: Any, message: str, copy: Path) -> None:
    shutil.rmtree(copy / "out")
    damage(copy / "tiny")
    with pytest.raises(BadInput, match=message) as caught:
        export_model(copy / "tiny", copy / "out", LLM)
    assert "\n" not in caught.value.message + caught.value.remedy
    assert not (copy / "out").exists()


@pytest.mark.usefixtures("no_builder")
def test_folders_that_cannot_take_a_decoder(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="is a file"):
        export_model(copy / "tiny", tmp_path / "file", LLM)
    with pytest.raises(BadInput, match="cannot be"):
        export_model(copy / "tiny", tmp_path / "file" / "out", LLM)
    tiny_decoders.save("llava", copy / "other", "qwen2")
    before = exportable.everything(copy / "out")
    with pytest.raises(BadInput, match="holds another model"):
        export_model(copy / "other", copy / "out", LLM)
    assert exportable.everything(copy / "out") == before


def test_without_the_builder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = decoder.importlib.util.find_spec
    monkeypatch.setattr(
        decoder.importlib.util, "find_spec", lambda name, *rest: None if "genai" in name else find(name, *rest)
    )
    with pytest.raises(MissingDependency, match="onnxruntime-genai") as caught:
        export_model(copy / "tiny", copy / "new", LLM)
    assert "vlm-edge[build]" in caught.value.remedy
    assert not (copy / "new").exists()


@pytest.mark.parametrize("dtype", ["fp32", "fp16"])
def test_a_decoder_that_differs_is_not_entered(dtype: str, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(parity.LIMITS, dtype, parity.Limit(cosine=0.9, relative_error=1e-12))
    before = exportable.everything(copy / "out")
    for out in (copy / "new", copy / "out"):
        with pytest.raises(CheckFailed, match=f"the {dtype} llm graph differs from torch") as caught:
            export_model(copy / "tiny", out, replace(LLM, dtype=dtype))
        assert ("--dtype fp32" in caught.value.remedy) is (dtype == "fp16")
    assert not (copy / "new").exists()
    assert exportable.everything(copy / "out") == before


def test_a_window_that_the_builder_lost_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate has to see more than that a graph runs: Mistral without its window differs after 24 tokens only."""
    tiny_decoders.save("llava", tmp_path / "tiny", "mistral")
    monkeypatch.setattr(decoder, "set_attention", lambda *_: None)
    with pytest.raises(CheckFailed, match="differs from torch"):
        export_model(tmp_path / "tiny", tmp_path / "out", LLM)


@pytest.mark.parametrize("step", range(len(llm.STEPS)))
def test_an_interruption_leaves_the_old_bundle(step: int, copy: Path) -> None:
    before = exportable.everything(copy / "out")

    def interrupt(said: str) -> None:
        if said == llm.STEPS[step]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(copy / "tiny", copy / "out", replace(LLM, dtype="fp16"), on_step=interrupt)
    assert exportable.everything(copy / "out") == before


def test_a_decoder_that_fails_after_its_tower_can_be_taken_up(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(
            decoder_parity, "compare", lambda *_, **__: parity.measure("llm", "fp32", [np.ones(2)], [np.zeros(2)])
        )
        with pytest.raises(CheckFailed):
            export_model(copy / "tiny", copy / "new", ALL)
    bundle = open_bundle(copy / "new")
    assert bundle.targets() == ()
    assert bundle.path("vision.graph", target="cpu").is_file()
    export_model(copy / "tiny", copy / "new", LLM)
    assert open_bundle(copy / "new").targets() == ("cpu",)


def test_positions_of_the_sample_differ_by_axis() -> None:
    text = tiny_decoders.spec("qwen2_5_vl")
    embeds, positions = llm.sample_inputs(text, Rows(text), 1.0)
    length = llm.PROMPT_TOKENS + llm.DECODED_TOKENS
    assert embeds.shape == (2, length, text.hidden)
    np.testing.assert_array_equal(embeds, embeds.astype(np.float16))
    assert positions is not None
    assert positions.shape == (2, 3, length)
    np.testing.assert_array_equal(positions[0], np.tile(np.arange(length), (3, 1)))
    time, row, column = positions[1]
    assert len({tuple(axis) for axis in (time, row, column)}) == 3
    assert (np.diff(time) >= 0).all()
    assert [*zip(row[5:25] - 5, column[5:25] - 5, strict=True)] == [(r, c) for r in range(4) for c in range(5)]
    np.testing.assert_array_equal(positions[1][:, 25:], np.tile(np.arange(10, 10 + length - 25), (3, 1)))


class Rows:
    """A table without a file."""

    def __init__(self, text: Any) -> None:
        self._rows = np.random.default_rng(3).normal(size=(text.vocab, text.hidden)).astype(np.float32)

    def rows(self, tokens: list[int]) -> np.ndarray:
        return self._rows[tokens]


@pytest.mark.usefixtures("no_builder")
def test_a_damaged_bundle_is_not_added_to(copy: Path) -> None:
    (copy / "out/llm/embed.safetensors").unlink()
    with pytest.raises(DamagedBundle, match="missing"):
        export_model(copy / "tiny", copy / "out", LLM)
