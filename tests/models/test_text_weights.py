"""The decoder written on its own, against the decoder inside the whole model."""

from __future__ import annotations

import errno
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests import tiny_decoders  # noqa: E402
from tests.models.tiny_checkpoints import ALONE, FAMILIES, build, rename, save_state  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.core.embedding import EmbeddingTable  # noqa: E402
from vlm_edge.errors import BadInput  # noqa: E402
from vlm_edge.models import text_weights  # noqa: E402
from vlm_edge.models.text_weights import extract_text_model, text_digest, write_embedding  # noqa: E402

ARCHITECTURES = {"paligemma": "GemmaForCausalLM", "internvl": "Qwen2ForCausalLM", "idefics2": "MistralForCausalLM"}
IDS = [[5, 9, 11, 40, 17]]


def extract(root: Path) -> Path:
    extract_text_model(open_checkpoint(root), root / "text")
    return root / "text"


def decoder_logits(whole: Any) -> Any:
    """What the whole model's decoder and head say to a text, without the whole model's own masks."""
    with torch.no_grad():
        return whole.get_output_embeddings()(whole.get_decoder()(torch.tensor(IDS)).last_hidden_state)


@pytest.mark.parametrize("family", ALONE)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_the_text_model_alone_says_the_same(family: str, tied: bool, tmp_path: Path) -> None:
    whole = build(family, tied=tied)
    whole.save_pretrained(tmp_path, max_shard_size="40KB")
    text = transformers.AutoModelForCausalLM.from_pretrained(extract(tmp_path), dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(text(torch.tensor(IDS)).logits, decoder_logits(whole))
    config = json.loads((tmp_path / "text" / "config.json").read_text())
    assert config["architectures"] == [ARCHITECTURES.get(family, "LlamaForCausalLM")]
    assert config["tie_word_embeddings"] is tied
    stored = load_file(tmp_path / "text" / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    decoder = {f"model.{name}": tensor for name, tensor in whole.get_decoder().state_dict().items()}
    assert stored.keys() - {"lm_head.weight"} == decoder.keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in decoder.items())


@pytest.mark.parametrize("layout", ["transformers 4", "transformers 5"])
def test_both_layouts(layout: str, tmp_path: Path) -> None:
    whole = build("llava")
    if layout == "transformers 5":
        save_state(whole, tmp_path)
    else:
        whole.save_pretrained(tmp_path)
        rename(tmp_path, FAMILIES["llava"].old)
    text = transformers.AutoModelForCausalLM.from_pretrained(extract(tmp_path), dtype=torch.float32).eval()
    with torch.no_grad():
        assert torch.equal(text(torch.tensor(IDS)).logits, decoder_logits(whole))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_stored_precision_is_kept(dtype: Any, tmp_path: Path) -> None:
    whole = build("llava", dtype=dtype)
    whole.save_pretrained(tmp_path)
    text = transformers.AutoModelForCausalLM.from_pretrained(extract(tmp_path), dtype="auto")
    assert text.dtype is dtype
    assert torch.equal(text.lm_head.weight, whole.lm_head.weight)
    assert torch.equal(text.model.layers[1].mlp.up_proj.weight, whole.get_decoder().layers[1].mlp.up_proj.weight)


def test_a_head_that_equals_the_embedding_is_stored_once(tmp_path: Path) -> None:
    """transformers 4 stored both for some checkpoints whose config ties them."""
    whole = build("llava", tied=True)
    whole.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" not in load_file(extract(tmp_path) / "model.safetensors")
    tensors["language_model.lm_head.weight"][3, 4] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    extract_text_model(open_checkpoint(tmp_path), tmp_path / "other")
    stored = load_file(tmp_path / "other" / "model.safetensors")
    assert torch.equal(stored["lm_head.weight"], tensors["language_model.lm_head.weight"])
    assert json.loads((tmp_path / "other" / "config.json").read_text())["tie_word_embeddings"] is False


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    (tmp_path / "text").mkdir()
    assert sorted(path.name for path in extract(tmp_path).iterdir()) == ["config.json", "model.safetensors"]
    with pytest.raises(BadInput, match="is not empty"):
        extract(tmp_path)


def refuse_writing(root: Path, target: Path) -> str:
    before = sorted(root.rglob("*"))
    with pytest.raises(BadInput) as caught:
        extract_text_model(open_checkpoint(root), target)
    assert caught.value.remedy
    assert sorted(root.rglob("*")) == before
    return caught.value.message


def edit(root: Path, name: str, tensor: Any) -> None:
    tensors = {key: value.clone() for key, value in load_file(root / "model.safetensors").items() if key != name}
    tensors |= {} if tensor is None else {name: tensor}
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("language_model.model.norm.weight", None, "lacks 1 tensor: 'model.language_model.norm.weight'"),
        ("language_model.lm_head.weight", None, "lacks 1 tensor: 'lm_head.weight'"),
        ("language_model.model.norm.weight", torch.zeros(47), "has shape (47,), config.json asks for (48,)"),
        ("language_model.model.norm.weight", torch.zeros(48, dtype=torch.int8), "is quantized"),
        ("language_model.model.layers.2.mlp.up_proj.weight", torch.zeros(96, 48), "describes fewer layers"),
    ],
)
def test_text_models_that_are_not_whole(name: str, tensor: Any, message: str, tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    edit(tmp_path, name, tensor)
    assert message in refuse_writing(tmp_path, tmp_path / "text")


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2"])
def test_odd_shapes_of_every_plain_decoder(kind: str, tied: bool, tmp_path: Path) -> None:
    """Five layers, three queries a key, heads apart from the hidden size."""
    whole = tiny_decoders.save("llava", tmp_path, kind, tied=tied)
    text = transformers.AutoModelForCausalLM.from_pretrained(extract(tmp_path), dtype=torch.float32).eval()
    assert type(text).__name__ == type(whole.model.language_model).__name__.replace("Model", "ForCausalLM")
    logits, expected = text(torch.tensor(IDS)).logits, decoder_logits(whole)
    cap = getattr(text.config, "final_logit_softcapping", None)
    torch.testing.assert_close(logits, torch.tanh(expected / cap) * cap if cap else expected, rtol=0, atol=0)


def test_the_digest_says_which_decoder_it_is(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("same", 0), ("tuned", 1)):
        tiny_decoders.save("llava", tmp_path / name, "llama", seed=seed)
    frozen = load_file(tmp_path / "one/model.safetensors")
    frozen = {name: tensor.clone() for name, tensor in frozen.items()}
    frozen["language_model.model.layers.4.mlp.down_proj.weight"][3, 4] += 1
    tiny_decoders.save("llava", tmp_path / "frozen", "llama")
    save_file(frozen, tmp_path / "frozen/model.safetensors", metadata={"format": "pt"})
    made = extract_text_model(open_checkpoint(tmp_path / "one"), tmp_path / "text")
    assert made == hashlib.sha256((tmp_path / "text/model.safetensors").read_bytes()).hexdigest()
    digests = {name: text_digest(open_checkpoint(tmp_path / name)) for name in ("one", "same", "tuned", "frozen")}
    assert digests["one"] == digests["same"] == made
    assert len({*digests.values()}) == 3


@pytest.mark.parametrize(("dtype", "named"), [("float32", "fp32"), ("float16", "fp16"), ("bfloat16", "bf16")])
@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_5_vl"])
def test_the_embedding_table_is_the_models_bit_for_bit(family: str, dtype: str, named: str, tmp_path: Path) -> None:
    whole = build(family, dtype=getattr(torch, dtype), tied=family == "paligemma")
    whole.save_pretrained(tmp_path / "model")
    assert write_embedding(open_checkpoint(tmp_path / "model"), tmp_path / "llm/embed.safetensors") == named
    table = EmbeddingTable(tmp_path / "llm/embed.safetensors")
    assert table.shape == (64, 48)
    expected = whole.get_input_embeddings().weight[[7, 0, 63]].float().detach().numpy()
    assert (table.rows([7, 0, 63]) == expected).all()


def test_a_table_in_a_dtype_that_nobody_reads(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    edit(tmp_path, "language_model.model.embed_tokens.weight", torch.zeros(64, 48, dtype=torch.float64))
    with pytest.raises(BadInput, match="F64"):
        write_embedding(open_checkpoint(tmp_path), tmp_path / "embed.safetensors")


def test_quantized_text_models(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    assert "is quantized" in refuse_writing(tmp_path, tmp_path / "text")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(stream: Any, _: Any) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    build("llava").save_pretrained(tmp_path)
    monkeypatch.setattr(text_weights, "write_copies", fill)
    assert "No space left" in refuse_writing(tmp_path, tmp_path / "text")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    assert "cannot be written" in refuse_writing(tmp_path, tmp_path / "config.json" / "text")
    assert "cannot be written" in refuse_writing(tmp_path, tmp_path / "config.json")


def test_an_interrupted_copy_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    build("llava").save_pretrained(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(text_weights, "write_copies", interrupt)
    with pytest.raises(KeyboardInterrupt):
        extract_text_model(open_checkpoint(tmp_path), tmp_path / "text")
    assert sorted(tmp_path.rglob("*")) == before
