"""Parts read from shards against transformers' from_pretrained on the same folder, bit for bit."""

from __future__ import annotations

import io
import json
import mmap
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import safetensors

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tests.models.tiny_checkpoints import FAMILIES, build, rename, save_state  # noqa: E402
from vlm_edge.core.checkpoint import open_checkpoint  # noqa: E402
from vlm_edge.models.weights import load_parts  # noqa: E402

ROOT = Path(__file__).parents[2]
TOWER = ("model.vision_tower", "model.multi_modal_projector")


def reference(root: Path, dtype: Any = torch.float32) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(root, dtype=dtype).eval()


def tensors_of(model: Any, part: str) -> dict[str, Any]:
    every = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in every.items() if part in ("", name) or name.startswith(f"{part}.")}


def assert_same(family: str, root: Path, dtype: Any = torch.float32) -> None:
    expected, measured = reference(root, dtype), load_parts(open_checkpoint(root), FAMILIES[family].parts, dtype=dtype)
    for part in FAMILIES[family].parts:
        theirs, ours = tensors_of(expected, part), tensors_of(measured, part)
        assert theirs
        assert list(theirs) == list(ours)
        for name, tensor in theirs.items():
            assert tensor.dtype == ours[name].dtype, name
            assert torch.equal(tensor, ours[name]), name
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in FAMILIES[family].inputs().items()
    }
    with torch.no_grad():
        ours, theirs = (model.get_image_features(**inputs).pooler_output for model in (measured, expected))
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    rest = [name for name, tensor in measured.named_parameters() if not tensor.is_meta]
    assert all(any(name == part or name.startswith(f"{part}.") for part in FAMILIES[family].parts) for name in rest)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["saved", "transformers 4", "transformers 5"])
def test_parts_equal_from_pretrained(family: str, layout: str, tmp_path: Path) -> None:
    model = build(family)
    if layout == "transformers 5":
        save_state(model, tmp_path)
    else:
        model.save_pretrained(tmp_path)
    if layout == "transformers 4":
        rename(tmp_path, FAMILIES[family].old)
    assert_same(family, tmp_path)


@pytest.mark.parametrize("family", FAMILIES)
def test_sharded_and_tied_checkpoints(family: str, tmp_path: Path) -> None:
    build(family, tied=True).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_same(family, tmp_path)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("family", ["llava", "llava-dinov2", "qwen2_5_vl"])
def test_precisions(family: str, stored: Any, wanted: Any, tmp_path: Path) -> None:
    build(family, dtype=stored).save_pretrained(tmp_path)
    assert_same(family, tmp_path, wanted)


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_5_vl"])
@pytest.mark.parametrize("tied", [False, True])
def test_everything_can_be_a_part(family: str, tied: bool, tmp_path: Path) -> None:
    build(family, tied=tied).save_pretrained(tmp_path)
    expected, measured = reference(tmp_path), load_parts(open_checkpoint(tmp_path), ("",), dtype=torch.float32)
    for name, tensor in tensors_of(expected, "").items():
        assert torch.equal(tensor, dict(tensors_of(measured, ""))[name]), name
    head, embedding = measured.get_output_embeddings().weight, measured.get_input_embeddings().weight
    assert (head is embedding) is tied
    ids = torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad():
        assert torch.equal(measured(input_ids=ids).logits, expected(input_ids=ids).logits)


def test_a_tied_head_is_found_under_its_other_name(tmp_path: Path) -> None:
    build("llava", tied=True).save_pretrained(tmp_path)
    measured = load_parts(open_checkpoint(tmp_path), ("lm_head",), dtype=torch.float32)
    assert torch.equal(measured.lm_head.weight, reference(tmp_path).lm_head.weight)


def test_parts_need_no_gradient_and_are_in_evaluation_mode(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    tower = load_parts(open_checkpoint(tmp_path), ("model.vision_tower",), dtype=torch.float32).model.vision_tower
    assert not tower.training
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_attention_can_be_chosen(tmp_path: Path) -> None:
    build("llava").save_pretrained(tmp_path)
    model = load_parts(open_checkpoint(tmp_path), ("model.vision_tower",), dtype=torch.float32, attention="eager")
    assert model.model.vision_tower.config._attn_implementation == "eager"


def test_weights_survive_the_file(tmp_path: Path) -> None:
    """Nothing is a view of the file: it may change or vanish afterwards."""
    build("llava").save_pretrained(tmp_path)
    expected = reference(tmp_path).model.vision_tower.post_layernorm.weight.clone()
    measured = load_parts(open_checkpoint(tmp_path), TOWER, dtype=torch.float32)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * (tmp_path / "model.safetensors").stat().st_size)
    assert torch.equal(measured.model.vision_tower.post_layernorm.weight, expected)


# Only what is needed is touched


class Recorder(io.FileIO):
    """A file that notes which of its bytes were read."""

    ranges: ClassVar[list[tuple[str, int, int]]] = []

    def _note(self, start: int, count: int) -> None:
        self.ranges.append((Path(self.name).name, start, start + count))  # type: ignore[arg-type]

    def readinto(self, buffer: Any) -> int:
        start, count = self.tell(), super().readinto(buffer) or 0
        self._note(start, count)
        return count

    def read(self, size: int | None = -1) -> bytes:
        start, data = self.tell(), super().read(-1 if size is None else size) or b""
        self._note(start, len(data))
        return data

    def readall(self) -> bytes:
        return self.read()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Every read of a safetensors file while the test runs; memory maps of files are forbidden."""
    original, Recorder.ranges = io.open, []

    def opening(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not str(file).endswith(".safetensors"):
            return original(file, mode, *args, **options)
        assert mode == "rb"
        return Recorder(file, "r")

    def no_map(*_: Any, **__: Any) -> None:
        raise AssertionError("a file was mapped into memory")

    monkeypatch.setattr(io, "open", opening)
    monkeypatch.setattr("builtins.open", opening)
    monkeypatch.setattr(mmap, "mmap", no_map)
    monkeypatch.setattr(safetensors, "safe_open", no_map)
    monkeypatch.setattr(torch.UntypedStorage, "from_file", no_map)
    return Recorder.ranges


@pytest.mark.parametrize("shard_size", ["1GB", "20KB"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_byte_of_the_language_model_is_read(
    family: str, shard_size: str, tmp_path: Path, recorded: list[tuple[str, int, int]]
) -> None:
    build(family).save_pretrained(tmp_path, max_shard_size=shard_size)
    recorded.clear()
    load_parts(open_checkpoint(tmp_path), FAMILIES[family].parts, dtype=torch.float32)
    reads, needed, forbidden = list(recorded), 0, 0
    for path in tmp_path.glob("*.safetensors"):
        content = path.read_bytes()
        data_start = 8 + int.from_bytes(content[:8], "little")
        for name, entry in json.loads(content[8:data_start]).items():
            if name == "__metadata__":
                continue
            begin, end = (data_start + offset for offset in entry["data_offsets"])
            touched = sum(max(0, min(end, b) - max(begin, a)) for file, a, b in reads if file == path.name)
            if re.match(r"(vision_tower|multi_modal|image_newline|visual|model\.(vision_model|connector))", name):
                assert touched == end - begin, name  # once
                needed += 1
            else:
                assert touched == 0, name
                forbidden += 1
    assert needed > 20
    assert forbidden > 15


MEASURE = """
import sys
from pathlib import Path
import torch
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.models.text_weights import extract_text_model
from vlm_edge.models.weights import load_parts
def counted():
    status = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    return int(status) * 1024, int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])
tiny, medium, large, out = map(Path, sys.argv[1:])
parts = ("model.vision_tower", "model.multi_modal_projector")
load_parts(open_checkpoint(tiny), parts, dtype=torch.float32)  # imports what it needs
extract_text_model(open_checkpoint(tiny), out / "tiny")
start = counted()
model = load_parts(open_checkpoint(large), parts, dtype=torch.float32)
loaded = counted()
size = sum(p.nbytes for part in parts for p in model.get_submodule(part).parameters())
extract_text_model(open_checkpoint(medium), out / "medium")
written = counted()
print(size, loaded[0] - start[0], loaded[1] - start[1], written[0] - loaded[0])
"""


@pytest.mark.skipif(not Path("/proc/self/io").is_file(), reason="counts bytes the way Linux does")
def test_memory_and_reads_stay_near_the_towers_size(tmp_path: Path) -> None:
    """A language model of 600 MB as a hole in the file: neither its bytes nor its size may show."""
    build("llava").save_pretrained(tmp_path / "tiny")
    medium, large = write_sparse(tmp_path / "medium", layers=4), write_sparse(tmp_path / "large", layers=12)
    assert large.joinpath("model.safetensors").stat().st_size > 650_000_000
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, (tmp_path / "tiny", medium, large, tmp_path / "out"))],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tower, grown, read, grown_writing = map(int, done.stdout.split())
    print(f"tower {tower}, grown {grown}, read {read}, grown while writing {grown_writing} bytes")
    assert tower > 40 << 20
    assert grown < 1.6 * tower
    assert read < 1.01 * tower + (1 << 20)
    assert grown_writing < 64 << 20
    written = tmp_path / "out" / "medium" / "model.safetensors"
    assert written.stat().st_size > 200_000_000
    written.unlink()


def write_sparse(root: Path, *, layers: int) -> Path:
    """LLaVA with a tower of 45 MB and a language model of 51 MB a layer, both zeros in fp32 that take no room on disk."""
    config = FAMILIES["llava"].config()
    for key, value in {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3}.items():
        setattr(config.vision_config, key, value)
    for key, value in {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": layers}.items():
        setattr(config.text_config, key, value)
    with torch.device("meta"):
        state = transformers.LlavaForConditionalGeneration(config).state_dict()
    config.save_pretrained(root)
    header, position = {}, 0
    for name, tensor in state.items():
        header[name] = {
            "dtype": "F32", "shape": list(tensor.shape), "data_offsets": [position, position + 4 * tensor.numel()],
        }  # fmt: skip
        position += 4 * tensor.numel()
    text = json.dumps(header).encode()
    with (root / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + position)
    return root
