"""`quantize` from a tiny checkpoint to files that others read; and everything that it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import quantizable
from tests.quant import tiny_decoders
from vlm_edge.core.bundle import hash_file, open_bundle, verify_hashes
from vlm_edge.errors import BadInput, CheckFailed
from vlm_edge.pipeline import awq_checkpoint, quantize_run
from vlm_edge.pipeline.quantize import WORK, QuantizeOptions, quantize_model
from vlm_edge.quant.reading import dequantized
from vlm_edge.quant.workspace import Workspace

OPTIONS = QuantizeOptions(group_size=32, samples=10, seqlen=48, search_tokens=64, device="cpu")
IDS = tiny_decoders.tokens(3, 24, seed=5)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quantizable.write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, quantizable.save_text(folder)


def weights_of(out: Path) -> dict[str, torch.Tensor]:
    return dict(dequantized(out / "llm/awq"))


def hashes(out: Path) -> dict[str, str]:
    paths = [*(out / "llm").rglob("*.safetensors"), out / "llm/awq/config.json"]
    return {path.relative_to(out).as_posix(): hash_file(path) for path in paths}


def loaded(model: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The same class with the quantized weights, read here by name."""
    other = type(model)(model.config).eval()
    missing, unexpected = other.load_state_dict(
        {name: tensor.float() for name, tensor in weights.items()}, strict=False
    )
    assert unexpected == []
    assert set(missing) <= {"lm_head.weight"}
    return other


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_language_model_keeps_its_function_better_than_by_plain_rounding(
    llama: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    folder, model = llama
    errors = {}
    for method in ("awq", "rtn"):
        done = quantize_model(folder, tmp_path / method, replace(OPTIONS, calib=data, method=method))
        assert done.bundle is None
        other = loaded(model, weights_of(tmp_path / method))
        errors[method] = float((logits(other) - logits(model)).square().mean())
        assert not (tmp_path / method / WORK).exists()
    assert errors["awq"] < 0.7 * errors["rtn"], errors


@pytest.mark.parametrize("kind", ["mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3"])
def test_every_text_architecture(kind: str, data: Path, tmp_path: Path) -> None:
    model = quantizable.save_text(tmp_path / "model", kind, num_key_value_heads=2 if kind != "phi3" else 4)
    done = quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data))
    held = done.report["held_out"]
    assert held["kl"] < 0.7 * held["plain_kl"]
    assert done.report["architecture"] == kind
    plain = quantize_model(tmp_path / "model", tmp_path / "plain", replace(OPTIONS, method="rtn"))
    assert plain.report["held_out"] is None
    errors = [
        float((logits(loaded(model, weights_of(tmp_path / name))) - logits(model)).square().mean())
        for name in ("out", "plain")
    ]
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    "family", ["llava", "llava_next", "internvl", "idefics3", "idefics2", "paligemma", "qwen2_vl", "qwen2_5_vl"]
)
def test_every_family_s_decoder_enters_a_bundle(family: str, data: Path, tmp_path: Path) -> None:
    model = quantizable.save_vlm(family, tmp_path / "model")
    done = quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data, seqlen=128))
    bundle = open_bundle(tmp_path / "out")
    verify_hashes(bundle, force=True)
    assert bundle.path("llm.embedding") == tmp_path / "out/llm/embed.safetensors"
    assert done.report["calibration"]["with_image"] == 5
    assert done.report["calibration"]["used"] == 10
    stored = load_file(tmp_path / "out/llm/awq/model.safetensors")
    original = load_file(tmp_path / "model/model.safetensors")
    packed = {name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")}
    gone = {name.removesuffix(".weight") for name in original.keys() - stored.keys()}
    assert packed == gone
    # Only the decoder's: towers use the same names for their layers.
    tower = [name for name in stored if "vision" in name or "visual" in name]
    assert tower
    assert all(torch.equal(stored[name], original[name]) for name in tower)
    assert len(packed) == 7 * model.config.get_text_config().num_hidden_layers
    config = json.loads((tmp_path / "out/llm/awq/config.json").read_text())["quantization_config"]
    assert "lm_head" in config["modules_to_not_convert"]
    table = load_file(bundle.path("llm.embedding"))["embed"]
    assert torch.equal(table, model.get_input_embeddings().weight.half())


def test_positions_of_qwen_vl_are_those_that_transformers_counts(tmp_path: Path) -> None:
    from vlm_edge.core.checkpoint import open_checkpoint
    from vlm_edge.models.decoder_layers import StreamedDecoder

    model = quantizable.save_vlm("qwen2_5_vl", tmp_path)
    decoder = StreamedDecoder(open_checkpoint(tmp_path))
    grid = (1, 4, 6)
    ids = torch.tensor([[1, *[3] * 6, 5, 6, 7]])
    expected, _ = model.model.get_rope_index(ids, (ids == 3).int(), image_grid_thw=torch.tensor([grid]))
    assert torch.equal(decoder.positions(1, 6, 10, grid), expected[:, 0])
    assert decoder.positions(1, 0, 10, None) is None


def test_two_runs_and_a_run_with_a_spill_file_write_the_same_bytes(
    llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, calib=data)
    quantize_model(llama[0], tmp_path / "a", options)
    real = quantize_run.Run._estimate

    def only_spilled_fits(self: Any, lengths: Any = None) -> Any:
        return replace(real(self, lengths), resident=1 << 50)

    monkeypatch.setattr(quantize_run.Run, "_estimate", only_spilled_fits)
    done = quantize_model(llama[0], tmp_path / "b", replace(options, max_memory_bytes=8 << 30))
    assert done.report["memory"]["hidden_states"] == "file"
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


KILLED = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(int(sys.argv[4]))
import vlm_edge.pipeline.quantize_run
import vlm_edge.pipeline.calibration_set
from vlm_edge.pipeline.quantize import quantize_model
from tests.pipeline.test_quantize import OPTIONS
model, data, out = map(Path, sys.argv[1:4])
options = replace(OPTIONS, calib=data)
moments = random.Random(0)

def run(seconds):
    # A fork has everything imported, so that the moments fall into the work.
    child = os.fork()
    if not child:
        try:
            quantize_model(model, out, options)
        finally:
            os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.monotonic()

started = time.monotonic()
quantize_model(model, out.with_name("whole"), options)
whole = time.monotonic() - started
finished = []
for _ in range(int(sys.argv[5])):
    run(moments.uniform(0, whole))
    finished.append((out / "llm/awq/config.json").exists())
run(None)
print(sum(finished))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_writes_the_same_bytes(
    llama: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    paths = [llama[0], data, tmp_path / "out"]
    kills = os.environ.get("VLM_EDGE_TEST_KILLS", "6")
    command = [sys.executable, "-c", KILLED, *map(str, paths), str(torch.get_num_threads()), kills]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock", "llm", "reports"}
    assert not (tmp_path / "out" / WORK).exists()


@pytest.mark.parametrize("failing", ["write_layer", "start"])
def test_a_full_disk_is_an_error_and_the_run_goes_on_later(
    failing: str, llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(OPTIONS, calib=data)
    real, calls = getattr(Workspace, failing), []

    def full_at_the_last(self: Workspace, *given: Any) -> Any:
        calls.append(given)
        if failing == "start" or len(calls) == 2:
            raise OSError(28, "No space left on device")
        return real(self, *given)

    with monkeypatch.context() as patched:
        patched.setattr(Workspace, failing, full_at_the_last)
        with pytest.raises(BadInput, match=r"cannot be written: .*No space left on device"):
            quantize_model(llama[0], tmp_path / "out", options)
    assert not (tmp_path / "out/llm/awq").exists()
    done = quantize_model(llama[0], tmp_path / "out", options)
    assert done.report["resumed_layers"] == (1 if failing == "write_layer" else 0)
    quantize_model(llama[0], tmp_path / "whole", options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "whole")


def test_work_of_other_options_is_not_continued(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    def stop(_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, calib=data), on_progress=stop)
    assert (tmp_path / "out" / WORK / "layer-000.safetensors").exists()
    options = replace(OPTIONS, calib=data, symmetric=True)
    done = quantize_model(llama[0], tmp_path / "out", options)
    assert done.report["resumed_layers"] == 0
    quantize_model(llama[0], tmp_path / "other", options)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "other")


def test_symmetric_weights_have_the_middle_zero_point(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, calib=data, symmetric=True))
    stored = load_file(tmp_path / "out/llm/awq/model.safetensors")
    zeros = [tensor for name, tensor in stored.items() if name.endswith("qzeros")]
    assert zeros
    assert all((tensor.view(torch.uint8) == 0x88).all() for tensor in zeros)


def test_weights_of_several_files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantizable.save_vlm("llava", tmp_path / "model", max_shard_size="100KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    smaller = partial(awq_checkpoint.write_checkpoint, max_shard_bytes=60_000)
    monkeypatch.setattr(awq_checkpoint, "write_checkpoint", smaller)
    quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data))
    index = json.loads((tmp_path / "out/llm/awq/model.safetensors.index.json").read_text())
    files = {path.name: load_file(path) for path in (tmp_path / "out/llm/awq").glob("*.safetensors")}
    assert len(files) > 1
    assert {name: file for file, tensors in files.items() for name in tensors} == index["weight_map"]


Change = Callable[[Path], None]


def of_tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Change:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def of_config(**values: Any) -> Change:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return apply


UP = "model.layers.1.mlp.up_proj.weight"
BAD_CHECKPOINTS: dict[str, tuple[Change, str]] = {
    "nan": (
        of_tensors(lambda t: t[UP].__setitem__((3, 4), float("nan"))),
        r"layer 1: mlp\.up_proj\.weight holds NaN or Inf",
    ),
    "inf": (
        of_tensors(lambda t: t[UP].__setitem__((3, 4), float("inf"))),
        r"layer 1: mlp\.up_proj\.weight holds NaN or Inf",
    ),
    "quantized": (of_config(quantization_config={"quant_method": "awq"}), "is already quantized"),
    "unknown": (of_config(model_type="mamba"), "model type 'mamba' is not supported"),
}


@pytest.mark.parametrize("name", BAD_CHECKPOINTS)
def test_bad_checkpoints_are_refused(name: str, data: Path, tmp_path: Path) -> None:
    quantizable.save_text(tmp_path / "model")
    change, message = BAD_CHECKPOINTS[name]
    change(tmp_path / "model")
    with pytest.raises(BadInput, match=message):
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data))
    assert not (tmp_path / "out/llm/awq").exists()


@pytest.mark.parametrize(
    ("sizes", "group", "message", "remedy"),
    [
        ({}, 128, r"self_attn\.q_proj has 64 inputs.*group size 128", "--group-size 32 works"),
        ({"intermediate_size": 128}, 128, "64 inputs", "--group-size 64 or 32 works"),
        ({"intermediate_size": 104}, 32, r"mlp\.down_proj has 104 inputs", "none of 128, 64 and 32 works"),
        ({"head_dim": 10, "num_attention_heads": 16, "num_key_value_heads": 2}, 32, "20 outputs", "eight outputs"),
    ],
)
def test_widths_that_do_not_divide_are_named(
    sizes: dict[str, Any], group: int, message: str, remedy: str, data: Path, tmp_path: Path
) -> None:
    quantizable.save_text(tmp_path / "model", **sizes)
    with pytest.raises(BadInput, match=message) as refused:
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=data, group_size=group))
    assert remedy in refused.value.remedy
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message", "remedy"),
    [
        ({"seqlen": 200}, "--seqlen 200 is longer than the model's context of 128", "use 128 or less"),
        ({"max_memory_bytes": 1 << 20}, r"--max-memory 1\.0 MiB is too small", "--max-memory "),
        ({"samples": 1}, "--samples 1 is too small", "use 2 or more"),
        ({"bits": 5}, "--bits 5 is not supported", "4, 3, 2"),
        ({"group_size": 48}, "--group-size 48 is not supported", "128, 64, 32"),
        ({"method": "gptq"}, "--method gptq is not supported", "awq, rtn"),
        ({"target": "cpu"}, "int4 ONNX decoder for cpu is not written yet", "--target none"),
        ({"lm_head": "int8"}, "--lm-head int8 concerns the ONNX decoder", "leave --lm-head out"),
        ({"kv_cache_dtype": "int4"}, "--kv-cache-dtype int4 concerns the ONNX decoder", "leave --kv-cache-dtype out"),
        ({"calib": Path("nowhere.jsonl")}, r"nowhere\.jsonl cannot be read", "JSON Lines file or a folder"),
    ],
)
def test_options_that_cannot_work_are_refused(
    change: dict[str, Any], message: str, remedy: str, llama: tuple[Path, Any], data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=message) as refused:
        quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, **{"calib": data, **change}))
    assert remedy in refused.value.remedy
    assert not (tmp_path / "out").exists()


def test_the_least_memory_that_is_named_does_work(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    options = replace(OPTIONS, calib=data)
    with pytest.raises(BadInput, match="too small") as refused:
        quantize_model(llama[0], tmp_path / "out", replace(options, max_memory_bytes=1 << 20))
    least = int(refused.value.remedy.partition("--max-memory ")[2].partition("MiB")[0])
    done = quantize_model(llama[0], tmp_path / "out", replace(options, max_memory_bytes=(least + 64) << 20))
    assert done.report["memory"]["peak_bytes"] <= (least + 64) << 20


def test_out_of_another_model_is_refused_and_kept(llama: tuple[Path, Any], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_model(llama[0], out, replace(OPTIONS, method="rtn"))
    before = hashes(out)
    quantizable.save_text(tmp_path / "qwen", "qwen2")
    quantizable.save_vlm("llava", tmp_path / "llava")
    for other in ("qwen", "llava"):
        with pytest.raises(BadInput, match=r"holds (another model|files that are no bundle's)"):
            quantize_model(tmp_path / other, out, replace(OPTIONS, calib=data))
    assert hashes(out) == before


def test_awq_that_is_worse_than_plain_rounding_fails_and_publishes_nothing(
    llama: tuple[Path, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = quantize_run.divergence
    monkeypatch.setattr(quantize_run, "divergence", lambda *given: replace(real(*given), kl=2.0, plain_kl=1.0))
    with pytest.raises(CheckFailed, match="held-out KL 2 against 1 nats"):
        quantize_model(llama[0], tmp_path / "out", replace(OPTIONS, calib=data))
    assert not (tmp_path / "out/llm/awq").exists()


def test_what_is_left_out_or_cut_is_counted(tmp_path: Path) -> None:
    quantizable.save_vlm("llava", tmp_path / "model")
    lines = quantizable.write_data(tmp_path / "data", 6)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    rows += [{"text": "</s> again"}, {"text": "x" * 300}]
    quantizable.write_lines(lines, rows)
    done = quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=lines, seqlen=64))
    counts = done.report["calibration"]
    assert counts["read"] == 8
    assert counts["skipped_no_question"] == 1
    assert counts["cut"] == 1
    assert counts["used"] == 7 == counts["sequences"]
    assert counts["held_out"] == 1  # every fourth


def test_images_that_fill_a_sequence_are_left_out_until_none_is_left(tmp_path: Path) -> None:
    quantizable.save_vlm("llava", tmp_path / "model")
    lines = quantizable.write_data(tmp_path / "data", 4)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    quantizable.write_lines(lines, [row for row in rows if "image" in row])
    with pytest.raises(BadInput, match="0 of 2 calibration samples can be used") as refused:
        quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=lines, seqlen=16))
    least = int(refused.value.remedy.split()[1])
    assert quantize_model(tmp_path / "model", tmp_path / "out", replace(OPTIONS, calib=lines, seqlen=least)).bundle


def test_the_prompt_is_the_one_that_transformers_sees(tmp_path: Path) -> None:
    """Input embeddings of a sample with an image against transformers' own model on the same tokens and pixels."""
    from vlm_edge.core.checkpoint import open_checkpoint
    from vlm_edge.core.resources import resource_dir
    from vlm_edge.models.decoder_layers import StreamedDecoder
    from vlm_edge.pipeline.calibration_set import Tower, prompt_for
    from vlm_edge.pipeline.export import describe
    from vlm_edge.quant.calibrate import Sample

    model = quantizable.save_vlm("llava", tmp_path / "model")
    described = describe(tmp_path / "model")
    checkpoint = open_checkpoint(tmp_path / "model")
    decoder = StreamedDecoder(checkpoint)
    table = awq_checkpoint.write_embedding(decoder, tmp_path / "embed.safetensors")
    prompt = prompt_for(checkpoint, described.family, described.spec, decoder, table)
    tower = Tower(checkpoint, "llava", described.images, described.settings, "cpu")
    image = tower.prepare(resource_dir("calibration") / "pages/page2.png")
    sample = Sample("what is it?", Path("x.png"), "nothing", "here")
    found = prompt.sequence(sample, image, tower.features(image))
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(tmp_path / "model/tokenizer.json"))
    text = f"<s>USER: {'<image>' * 16}\nwhat is it? ASSISTANT:nothing"
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False).ids])
    seen: dict[str, torch.Tensor] = {}
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _m, _a, named: seen.update(rows=named["inputs_embeds"][0]), with_kwargs=True
    )
    with torch.no_grad():
        model(input_ids=ids, pixel_values=torch.from_numpy(np.asarray(image.arrays["pixel_values"])))
    handle.remove()
    torch.testing.assert_close(found.hidden, seen["rows"], rtol=1e-4, atol=1e-5)
    first_text = int((ids[0] == 3).nonzero().max()) + 1
    assert found.placement.judged_from == first_text - 1
