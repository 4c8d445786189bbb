"""What a CPU's sessions hold beyond their files: against bundles that were written, and ONNX Runtime itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.memory.subjects import CLIP_L_336, LLAVA, VICUNA_7B, text
from vlm_edge.core.specs import TextSpec
from vlm_edge.memory.cpu_graph import CpuGraph, cpu_graph, stored_graph, tower_beside_bytes, tower_repacked_bytes
from vlm_edge.memory.plan import plan_request
from vlm_edge.memory.request import Request
from vlm_edge.memory.weights import vision_bytes

LLAVA_7B = replace(VICUNA_7B, vocab=32064, max_positions=4096)
LLAMA_1B = replace(text(2048, 5632, 22, 32, 4, 32064), max_positions=4096)
SMALL = replace(text(512, 1024, 3, 8, 2, 1000, tied=True), max_positions=512)

LOADED = """
import sys
import onnxruntime
def held():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS")))
before = held()
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
print(1024 * (held() - before))
"""


@pytest.mark.parametrize(
    ("spec", "stored", "head", "groups", "repacked"),
    [
        # --lm-head fp16, which is fp32 here: 4 x 32,064 x 4,096
        (LLAVA_7B, 3_994_362_163, 525_336_576, 6_476_005_376 // 128, 525_336_576),
        # --lm-head int8: 65,667,072 codes, and 5 bytes for each 128 of them
        (LLAMA_1B, 588_283_928, 68_232_192, (968_884_224 + 65_667_072) // 128, 68_232_192),
    ],
    ids=["7B", "1.1B"],
)
def test_a_bundles_size_says_how_it_is_packed(
    spec: TextSpec, stored: int, head: int, groups: int, repacked: int
) -> None:
    found = stored_graph(spec, stored)
    assert (found.head_bytes, found.beside_bytes, found.repacked_bytes) == (head, 8 * groups, repacked)
    assert found.file_bytes == pytest.approx(stored, rel=1e-3)  # the graph is beside its data


@pytest.mark.parametrize("head", ["fp16", "int8", "int4"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("spec", [LLAVA_7B, LLAMA_1B, SMALL], ids=["7B", "1.1B", "small"])
def test_what_is_written_is_recognised(spec: TextSpec, group: int, head: str) -> None:
    written = cpu_graph(spec, Request(target="cpu", group_size=group, lm_head=head))
    assert stored_graph(spec, written.file_bytes) == written


def test_floats_lie_there_as_fp32() -> None:
    half, full = (cpu_graph(LLAMA_1B, Request(target="cpu", weights=kind, lm_head=kind)) for kind in ("fp16", "fp32"))
    assert half.file_bytes + half.beside_bytes == full.file_bytes
    assert full.beside_bytes == 0
    assert stored_graph(LLAMA_1B, full.file_bytes) == full


def test_a_bundle_without_a_decoder_holds_none() -> None:
    assert stored_graph(LLAMA_1B, 0) == CpuGraph(0, 0, 0, 0, 0)


def test_only_a_tower_in_8_bits_has_groups() -> None:
    wanted = 8 * (23 * 12 * 1024**2 + 1024 * 4096 + 4096**2) // 32
    assert tower_beside_bytes(CLIP_L_336, LLAVA.projector, dtype="int8", stored_bytes=None) == wanted
    packed = vision_bytes(CLIP_L_336, dtype="int8")
    assert tower_beside_bytes(CLIP_L_336, LLAVA.projector, dtype="fp32", stored_bytes=packed) == wanted
    for dtype, stored in (("fp32", None), ("fp16", None), ("int8", 4 * CLIP_L_336.parameters), ("int8", 0)):
        assert tower_beside_bytes(CLIP_L_336, LLAVA.projector, dtype=dtype, stored_bytes=stored) == 0


def test_the_largest_matrix_of_a_tower_is_often_its_projectors() -> None:
    assert tower_repacked_bytes(CLIP_L_336, LLAVA.projector) == 4 * 4096 * 4096
    assert tower_repacked_bytes(CLIP_L_336, replace(LLAVA.projector, hidden=0)) == 4 * 1024 * 4096


def test_the_decoder_is_packed_where_the_tower_comes_to_lie() -> None:
    request = Request(target="cpu", unified=True, context=1024, vision_dtype="fp32", tiles=0)
    head = 4 * 4096 * 32000
    for vision_dtype, twice in (("fp32", 4 * 4096 * 4096), ("int8", None)):
        plan = plan_request(LLAVA, replace(request, vision_dtype=vision_dtype), budget_bytes=1 << 40)
        held = {item.name: item.bytes for item in plan.items}
        tower = sum(held.get(name, 0) for name in ("vision.weights", "projector.weights", "vision.packed"))
        assert held["weights.repacked"] == (twice or head - tower), vision_dtype
    apart = plan_request(LLAVA, replace(request, release_tower=True), budget_bytes=1 << 40)
    (item,) = (item for item in apart.items if item.name == "weights.repacked")
    assert (item.bytes, item.phases) == (head, ("prefill",))


def test_onnx_runtime_lays_that_much_beside_the_codes(tmp_path: Path) -> None:
    """The same codes in smaller groups: file and memory grow, memory by 8 bytes a group more than the file."""
    pytest.importorskip("onnx")
    if not Path("/proc/self/status").is_file():
        pytest.skip("the resident set is read from /proc")
    (coarse, fine), size, count = (128, 32), 2048, 16
    extra = [held - stored for held, stored in (_held(tmp_path / str(g), size, count, g) for g in (coarse, fine))]
    more = 8 * (count * size * size // fine - count * size * size // coarse)
    assert extra[1] - extra[0] == pytest.approx(more, rel=0.15)


def _held(folder: Path, size: int, count: int, group: int) -> tuple[int, int]:
    """Resident bytes that a session of `count` square matrices of 4 bits adds, and those of its file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir()
    nodes, tensors, value, rng = [], [], "x", np.random.default_rng(0)
    for i in range(count):
        codes = rng.integers(0, 256, (size, size // group, group // 2), np.uint8)
        scales = rng.random(size * (size // group), np.float32)
        tensors += [numpy_helper.from_array(codes, f"codes{i}"), numpy_helper.from_array(scales, f"scales{i}")]
        nodes.append(
            helper.make_node("MatMulNBits", [value, f"codes{i}", f"scales{i}"], [f"y{i}"], domain="com.microsoft", K=size, N=size,
                             bits=4, block_size=group, accuracy_level=4)
        )  # fmt: skip
        value = f"y{i}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, size]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path = folder / "model.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, ir_version=10), path, save_as_external_data=True, location="data",
        size_threshold=1024,
    )  # fmt: skip
    held = subprocess.run([sys.executable, "-c", LOADED, str(path)], capture_output=True, text=True, check=True)
    return int(held.stdout), (folder / "data").stat().st_size
