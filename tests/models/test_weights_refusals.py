"""Checkpoints whose weights and config.json do not belong together, and what is tolerated."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.models.tiny_checkpoints import FAMILIES, build  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.errors import BadInput  # noqa: E402
from vlm_edge.models import weights  # noqa: E402
from vlm_edge.models.weights import load_parts  # noqa: E402

MLP = "vision_tower.encoder.layers.1.mlp.fc1.weight"


@pytest.fixture
def llava(tmp_path: Path) -> Path:
    build("llava").save_pretrained(tmp_path)
    return tmp_path


def edit_weights(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(root / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, root / "model.safetensors", metadata={"format": "pt"})


def edit_config(root: Path, *path: str, value: Any) -> None:
    config = json.loads((root / "config.json").read_text())
    inner = config
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (root / "config.json").write_text(json.dumps(config))


def refusal(root: Path, family: str = "llava") -> BadInput:
    with pytest.raises(BadInput) as caught:
        load_parts(open_checkpoint(root), FAMILIES[family].parts, dtype=torch.float32)
    assert caught.value.remedy
    assert "\n" not in caught.value.message + caught.value.remedy
    assert len(caught.value.message) < 1500
    return caught.value


def test_five_of_many_missing_tensors_are_named(llava: Path) -> None:
    names = [
        f"vision_tower.encoder.layers.{layer}.mlp.{part}" for layer in range(3) for part in ("fc1.bias", "fc2.bias")
    ]
    edit_weights(llava, lambda tensors: [tensors.pop(name) for name in names])
    message = refusal(llava).message
    assert "lacks 6 tensors" in message
    assert [f"model.{name}" in message for name in names] == [True] * 5 + [False]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_of_the_parts_may_be_missing(family: str, tmp_path: Path) -> None:
    build(family).save_pretrained(tmp_path)
    part = FAMILIES[family].parts[-1]
    names = [name for name in load_file(tmp_path / "model.safetensors") if name.startswith(part.removeprefix("model."))]
    names = names or [name for name in load_file(tmp_path / "model.safetensors") if name.startswith(part)]
    edit_weights(tmp_path, lambda tensors: tensors.pop(names[-1]))
    assert "lacks 1 tensor: " in refusal(tmp_path, family).message


def test_the_language_model_may_be_missing(llava: Path) -> None:
    edit_weights(
        llava,
        lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("language_model")],
    )
    load_parts(open_checkpoint(llava), FAMILIES["llava"].parts, dtype=torch.float32)


@pytest.mark.parametrize(
    ("path", "value", "tensor", "shapes"),
    [
        (("vision_config", "image_size"), 56, "vision_tower.embeddings.position_embedding.weight", ["(5, 32)", "(17, 32)"]),
        (("vision_config", "intermediate_size"), 65, "mlp.fc1", ["(64", "(65"]),
        (("vision_config", "hidden_size"), 48, "vision_tower.", ["(32", "(48"]),
        (("vision_config", "patch_size"), 7, "vision_tower.embeddings.", ["(32, 3, 14, 14)", "(32, 3, 7, 7)"]),
        (("text_config", "hidden_size"), 64, "multi_modal_projector.linear_1", ["(48", "(64"]),
    ],
)  # fmt: skip
def test_sizes_that_contradict_the_weights(
    path: tuple[str, ...], value: int, tensor: str, shapes: list[str], llava: Path
) -> None:
    edit_config(llava, *path, value=value)
    message = refusal(llava).message
    assert tensor in message
    assert all(shape in message for shape in shapes), message


def test_a_wrong_shape_is_refused_before_anything_is_read(llava: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_weights(llava, lambda tensors: tensors.update({MLP: torch.zeros(64, 33)}))

    def read(tensor: Any, dtype: Any) -> Any:
        assert tensor.name != MLP
        return original(tensor, dtype)

    original = weights.read
    monkeypatch.setattr(weights, "read", read)
    message = refusal(llava).message
    assert MLP in message
    assert "(64, 33)" in message
    assert "(64, 32)" in message


def test_halves_of_a_joined_tensor_have_their_shape_checked(tmp_path: Path) -> None:
    build("llava-dinov2").save_pretrained(tmp_path)
    edit_weights(
        tmp_path,
        lambda tensors: tensors.update({"vision_tower.encoder.layer.0.mlp.weights_in.bias": torch.zeros(100)}),
    )
    assert "weights_in.bias" in refusal(tmp_path, "llava-dinov2").message


def test_fewer_layers_in_the_config_than_in_the_weights(llava: Path) -> None:
    edit_config(llava, "vision_config", "num_hidden_layers", value=2)
    message = refusal(llava).message
    assert "no place for 16 tensors" in message
    assert "encoder.layers.2." in message


def test_more_layers_in_the_config_than_in_the_weights(llava: Path) -> None:
    edit_config(llava, "vision_config", "num_hidden_layers", value=4)
    assert "lacks 16 tensors: 'model.vision_tower.encoder.layers.3." in refusal(llava).message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.int32], ids=str)
def test_quantized_weights(dtype: Any, llava: Path) -> None:
    edit_weights(llava, lambda tensors: tensors.update({MLP: tensors[MLP].to(dtype)}))
    message = refusal(llava).message
    assert MLP in message
    assert "is quantized" in message


def test_one_parameter_stored_twice(llava: Path) -> None:
    edit_weights(llava, lambda tensors: tensors.update({f"model.{MLP}": tensors[MLP] + 1}))
    message = refusal(llava).message
    assert f"'{MLP}'" in message
    assert f"'model.{MLP}'" in message


def test_buffers_of_old_versions_and_unused_heads_are_tolerated(llava: Path) -> None:
    edit_weights(
        llava,
        lambda tensors: tensors.update(
            {
                "vision_tower.vision_model.embeddings.position_ids": torch.arange(99)[None],
                "vision_tower.vision_model.head.probe": torch.zeros(1, 1, 32),
                "language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(6),
            }
        ),
    )
    model = load_parts(open_checkpoint(llava), FAMILIES["llava"].parts, dtype=torch.float32)
    assert model.model.vision_tower.embeddings.position_ids.tolist() == [[0, 1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("path", "value", "message", "remedy"),
    [
        (("model_type",), "lava", "unknown model type 'lava'", "'llava'"),
        (("model_type",), "qwen2_5vl", "unknown model type", "'qwen2_5_vl'"),
        (("model_type",), "my_own", "unknown model type", "made for transformers"),
        (("model_type",), None, "has no model_type", "config.json"),
        (("model_type",), ["llava"], "has no model_type", "config.json"),
        (("model_type",), "llama", "'llama' is no vision-language model", "images"),
        (("vision_config",), 3, "describes no model", "config.json"),
        (("vision_config", "model_type"), "nothing", "describes no model", "config.json"),
        (("vision_config", "hidden_size"), "large", "describes no model", "config.json"),
        (("vision_config", "hidden_size"), -1, "describes no model", "config.json"),
        (("vision_config", "hidden_size"), 33, "describes no model", "config.json"),
        (("vision_config", "num_attention_heads"), 0, "describes no model", "config.json"),
        (("vision_config", "num_hidden_layers"), 10**9, "num_hidden_layers is 1000000000", "config.json"),
        (("text_config", "num_hidden_layers"), 10**9, "num_hidden_layers is 1000000000", "config.json"),
    ],
)
def test_configs_that_describe_no_model(
    path: tuple[str, ...], value: Any, message: str, remedy: str, llava: Path
) -> None:
    edit_config(llava, *path, value=value)
    error = refusal(llava)
    assert message in error.message
    assert remedy in error.remedy


def test_a_config_nested_almost_too_deeply_to_parse(llava: Path) -> None:
    """How deep Python can walk depends on its version: what may come out is a model or BadInput, no RecursionError."""
    text = (llava / "config.json").read_text().rstrip().removesuffix("}")
    for depth in (900, 950, 980):
        (llava / "config.json").write_text(text + ', "more": ' + '{"a": ' * depth + "1" + "}" * depth + "}")
        with contextlib.suppress(BadInput):
            load_parts(open_checkpoint(llava), FAMILIES["llava"].parts, dtype=torch.float32)


def test_a_billion_layers_are_refused_before_they_become_a_config(tmp_path: Path) -> None:
    build("internvl").save_pretrained(tmp_path)  # its text config makes a list with an entry a layer
    edit_config(tmp_path, "text_config", "num_hidden_layers", value=10**9)
    edit_config(tmp_path, "text_config", "layer_types", value=None)
    assert "num_hidden_layers is 1000000000" in refusal(tmp_path, "internvl").message


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("path", [(), ("vision_config",)])
def test_a_checkpoint_does_not_choose_code(key: str, path: tuple[str, ...], llava: Path) -> None:
    edit_config(llava, *path, key, value="someone/kernel")
    model = load_parts(open_checkpoint(llava), FAMILIES["llava"].parts, dtype=torch.float32)
    assert model.model.vision_tower.config._attn_implementation == "sdpa"


def test_the_tower_of_a_quantized_checkpoint(llava: Path) -> None:
    """Quantizers leave the tower alone; what they did to the language model is not looked at."""
    edit_config(llava, "quantization_config", value={"quant_method": "awq", "bits": 4})
    edit_weights(llava, lambda tensors: tensors.pop("language_model.model.layers.0.mlp.up_proj.weight"))
    load_parts(open_checkpoint(llava), FAMILIES["llava"].parts, dtype=torch.float32)


def test_a_part_that_the_class_does_not_have(llava: Path) -> None:
    with pytest.raises(ValueError, match=r"no part 'model\.connector'"):
        load_parts(open_checkpoint(llava), ("model.connector",), dtype=torch.float32)


def test_tied_tables_that_differ_stay_two(llava: Path) -> None:
    edit_config(llava, "tie_word_embeddings", value=True)
    model = load_parts(open_checkpoint(llava), ("",), dtype=torch.float32)
    head, embedding = model.lm_head.weight, model.model.language_model.embed_tokens.weight
    stored = load_file(llava / "model.safetensors")
    assert torch.equal(head, stored["language_model.lm_head.weight"])
    assert torch.equal(embedding, stored["language_model.model.embed_tokens.weight"])
