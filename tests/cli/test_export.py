"""vlm-edge export: what it prints, and its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import exportable, tiny_decoders
from vlm_edge.backends.onnx import parity
from vlm_edge.cli.main import execute
from vlm_edge.pipeline.exporting.export import DTYPES, OPSET, STEPS, TARGETS
from vlm_edge.pipeline.exporting.llm import STEPS as DECODER_STEPS


@pytest.fixture(scope="module", autouse=True)
def traced_once() -> Iterator[None]:
    with exportable.exporting_once():
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    exportable.save("llava", folder)
    return folder


@pytest.fixture
def exported(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert execute(["--quiet", "export", str(tiny), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    return tmp_path / "out"


def test_a_table_on_stdout_and_steps_on_stderr(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert execute(["export", str(tiny), str(tmp_path / "out")]) == 0
    shown = capsys.readouterr()
    assert shown.err.splitlines() == list(STEPS)
    assert "vision/cpu/model.onnx" in shown.out
    assert "vision/cpu cosine: " in shown.out
    assert execute(["info", str(tmp_path / "out")]) == 0
    assert "vision.graph" in capsys.readouterr().out


def test_json_is_one_object(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["export", str(tiny), str(tmp_path / "out"), "--dtype", "int8", "--opset", str(OPSET), "--json", "--quiet"]
    assert execute(words) == 0
    shown = capsys.readouterr()
    report = json.loads(shown.out)
    assert shown.err == ""
    assert (report["target"], report["dtype"], report["opset"], report["name"]) == ("cpu", "int8", OPSET, "tiny")
    assert report["components"] == ["vision", "projector"]
    assert [artifact["path"] for artifact in report["artifacts"]] == [
        "vision/cpu/model.onnx",
        "vision/cpu/references.npz",
    ]
    assert all(row["ok"] for row in report["parity"])
    assert report["scheme"]
    assert report["why"]


def test_a_graph_that_differs_ends_with_1_and_nothing_is_entered(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setitem(parity.LIMITS, "fp32", parity.Limit(cosine=0.9, relative_error=1e-12))
    assert execute(["--quiet", "export", str(tiny), str(tmp_path / "out")]) == 1
    error, fix = capsys.readouterr().err.splitlines()
    assert error.startswith("error: the fp32 vision graph differs from torch")
    assert fix.startswith("fix: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--component", "ears"], "--component ears cannot be exported"),
        (["--component", "vision, projector,ears"], "--component ears cannot be exported"),
        (["--dtype", "int4"], "no export to int4 for cpu"),
        (["--target", "npu"], "no export to fp32 for npu"),
    ],
)
def test_errors_are_two_lines(
    words: list[str], message: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert execute(["export", str(tiny), str(tmp_path / "out"), *words]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert message in error
    assert fix.startswith("fix: ")
    assert not (tmp_path / "out").exists()


def test_the_help_has_an_example_and_every_value(capsys: pytest.CaptureFixture[str]):
    assert execute(["export", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "Example: vlm-edge export" in shown
    for value in (*TARGETS, *DTYPES, str(OPSET), "vision,projector"):
        assert value in shown


def test_run_says_that_there_is_no_decoder(exported: Path, capsys: pytest.CaptureFixture[str]):
    page = exportable.PAGE
    assert execute(["run", str(page), "what is the total?", "--bundle", str(exported)]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert "has no decoder" in error
    assert f"vlm-edge export MODEL {exported} --component llm" in fix


def test_a_decoder_with_its_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tiny_decoders.save("llava", tmp_path / "tiny", "llama")
    words = ["export", str(tmp_path / "tiny"), str(tmp_path / "out"), "--component", "llm"]
    capsys.readouterr()  # transformers' own bar for what it saved
    with tiny_decoders.builder_in_process():
        assert execute(words) == 0
        shown = capsys.readouterr()
        assert shown.err.splitlines() == list(DECODER_STEPS)
        assert "llm/cpu/model.onnx.data" in shown.out
        assert "llm/cpu relative_error: " in shown.out
        assert execute([*words, "--dtype", "fp16", "--json", "--quiet"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["components"] == ["llm"]
    assert {"llm.graph", "llm.embedding", "llm.references"} < {artifact["role"] for artifact in found["artifacts"]}


def test_a_decoder_in_eight_bits_is_quantizes_work(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert execute(["export", str(tiny), str(tmp_path / "out"), "--component", "llm", "--dtype", "int8"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: export writes no int8 decoder"
    assert lines[1].startswith("fix: use vlm-edge quantize")
    assert len(lines) == 2
