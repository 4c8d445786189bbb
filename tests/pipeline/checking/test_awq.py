"""What verify says of a bundle with an AWQ checkpoint: whole, of another model, and damaged in each way."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import quantizable
from tests.pipeline.answering.test_hostile_bundles import reseal
from tests.quantizable import OPTIONS
from vlm_edge.core import shards
from vlm_edge.pipeline.checking.checks import Check
from vlm_edge.pipeline.checking.verify import verify_bundle
from vlm_edge.pipeline.quantizing.quantize import quantize_model

AWQ = "llm/awq/model.safetensors"
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, `tiny`, and its quantized bundle, `out`."""
    folder = tmp_path_factory.mktemp("awq")
    quantizable.save_vlm("llava", folder / "tiny")
    quantize_model(folder / "tiny", folder / "out", replace(OPTIONS, method="rtn"))
    return folder


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "out", tmp_path / "out"))


def checked(root: Path, model: Path | None = None) -> dict[str, Check]:
    found = verify_bundle(root, model, threads=1)
    return {check.name: check for check in found.checks}


def rewrite(root: Path, change: Callable[[Tensors], None]) -> None:
    """Change tensors and make every hash fit again, as a writer with a defect would have left them."""
    tensors = load_file(root / AWQ)
    change(tensors)
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, root / AWQ)
    reseal(root)


def test_a_whole_bundle_with_and_without_its_model(made: Path) -> None:
    checks = checked(made / "out")
    assert [name for name, check in checks.items() if check.ok is None] == ["parity llm/awq"]
    assert all(check.ok for check in checks.values() if check.ok is not None)
    assert {"load llm/awq", "shapes llm/awq", "finite llm/awq"} <= {*checks}
    with_model = checked(made / "out", made / "tiny")
    assert with_model["source text"].ok
    assert {*with_model} - {*checks} == {"source config", "source tensors", "source text"}


def test_another_models_weights_are_noticed(made: Path, tmp_path: Path) -> None:
    """A fine-tune: configuration, names and shapes are the same."""
    other = Path(shutil.copytree(made / "tiny", tmp_path / "tiny"))
    tensors = load_file(other / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight") and "vision" not in name)
    tensors[name][3, 5] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    checks = checked(made / "out", other)
    assert checks["source config"].ok
    assert checks["source tensors"].ok
    assert checks["source text"].ok is False
    assert checks["source text"].note == "it is another one"


def test_a_damaged_file_is_not_looked_into(out: Path) -> None:
    data = bytearray((out / AWQ).read_bytes())
    data[-1] ^= 1
    (out / AWQ).write_bytes(data)
    checks = checked(out)
    assert checks[f"file {AWQ}"].ok is False
    assert checks["llm/awq"].ok is None
    assert "finite llm/awq" not in checks


def set_value(part: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        name = next(name for name in tensors if name.endswith(part) and "vision" not in name)
        tensors[name].flat[3] = value

    return change


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("up_proj.scales", float("nan")), ("up_proj.scales", float("-inf")), ("up_proj.scales", 0.0),
        ("up_proj.scales", -0.25), ("input_layernorm.weight", float("inf")), ("embed_tokens.weight", float("nan")),
        ("multi_modal_projector.linear_1.bias", float("nan")),
    ],
)  # fmt: skip
def test_values_that_cannot_be(part: str, value: float, out: Path) -> None:
    rewrite(out, set_value(part, value))
    check = checked(out)["finite llm/awq"]
    assert (check.ok, check.value, check.limit) == (False, 1, 0)
    assert part in check.note


def test_zero_and_negative_values_that_are_no_scales_are_fine(out: Path) -> None:
    for value in (0.0, -0.25):
        rewrite(out, set_value("input_layernorm.weight", value))
        assert checked(out)["finite llm/awq"].ok


def without(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if f"layers.1.mlp.{part}" in name]:
            del tensors[name]

    return change


def narrower(part: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        name = next(name for name in tensors if name.endswith(f"layers.1.mlp.{part}"))
        tensors[name] = tensors[name][:, :-1]

    return change


def transposed(tensors: Tensors) -> None:
    """Consistent within itself, but of other sizes than the decoder's."""
    for part in ("qweight", "qzeros", "scales"):
        own, other = (
            next(n for n in tensors if n.endswith(f"layers.1.mlp.{m}.{part}")) for m in ("up_proj", "down_proj")
        )
        tensors[own], tensors[other] = tensors[other], tensors[own]


def doubled(tensors: Tensors) -> None:
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.scales"))
    tensors[name] = tensors[name].astype(np.float32)


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (without("up_proj.scales"), r"up_proj has no scales"),
        (without("up_proj.qweight"), r"up_proj has no qweight"),
        (narrower("up_proj.qzeros"), r"up_proj has parts of shapes"),
        (narrower("up_proj.scales"), r"up_proj has parts of shapes"),
        (transposed, r"inputs and \d+ outputs; the manifest's decoder has"),
        (doubled, r"up_proj\.scales is F32 of shape"),
        (without("up_proj"), r"weights are packed; the manifest's decoder has"),
    ],
)
def test_parts_that_do_not_fit(change: Callable[[Tensors], None], note: str, out: Path) -> None:
    rewrite(out, change)
    check = checked(out)["shapes llm/awq"]
    assert check.ok is False
    assert check.value >= 1  # type: ignore[operator]
    assert re.search(note, check.note), check.note


@pytest.mark.parametrize(
    ("told", "note"),
    [
        ({"group_size": 64}, "shapes"), ({"group_size": 0}, "load"), ({"group_size": "32"}, "load"), ({"bits": 8}, "load"),
        ({"version": "gemv"}, "load"), ({"quant_method": "gptq"}, "load"),
    ],
)  # fmt: skip
def test_a_configuration_of_another_format(told: dict[str, object], note: str, out: Path) -> None:
    path = out / "llm/awq/config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= told
    path.write_text(json.dumps(config))
    reseal(out)
    assert checked(out)[f"{note} llm/awq"].ok is False


def test_a_file_without_a_header(out: Path) -> None:
    (out / AWQ).write_bytes(b"no tensors")
    reseal(out)
    check = checked(out)["load llm/awq"]
    assert check.ok is False
    assert "model.safetensors" in check.note


def test_no_more_than_a_few_chunks_are_held(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With chunks of 64 bytes, no read of tensor data is longer."""
    monkeypatch.setattr(shards, "COPY_BYTES", 64)
    longest = []
    real = shards._fill

    def fill(stream: object, tensor: object, buffer: memoryview) -> None:
        longest.append(buffer.nbytes)
        real(stream, tensor, buffer)  # type: ignore[arg-type]

    monkeypatch.setattr(shards, "_fill", fill)
    assert checked(made / "out")["finite llm/awq"].ok
    assert max(longest) == 64
    assert len(longest) > 1000


def test_without_torch(made: Path) -> None:
    program = (
        "import sys\nfrom vlm_edge.pipeline.checking.verify import verify_bundle\n"
        f"found = verify_bundle({str(made / 'out')!r}, threads=1)\n"
        "print(found.ok, {'torch', 'transformers', 'onnx'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          cwd=Path(__file__).parents[3])  # fmt: skip
    assert done.stdout.strip() == "True set()"
