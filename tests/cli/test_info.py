"""vlm-edge info: numbers of the manifest, as tables and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlm_edge.cli.main import execute
from vlm_edge.core.bundle import Bundle

SIZES = {"vision": 1800, "llm": 700, "other": 2}


def test_json_has_everything_that_the_manifest_has(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["info", str(tiny_bundle.root), "--json"]) == 0
    printed = capsys.readouterr()
    shown = json.loads(printed.out)
    written = json.loads((tiny_bundle.root / "manifest.json").read_text())
    del written["self_sha256"]
    assert {key: shown[key] for key in written} == written
    assert shown["totals_bytes"] == {**SIZES, "all": sum(SIZES.values())}
    assert shown["tokens_per_view"] == 64
    assert shown["bundle"] == str(tiny_bundle.root)
    assert printed.err == ""


def test_tables_show_model_limits_files_totals_parity_and_tools(
    tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["info", str(tiny_bundle.root)]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for expected in [
        "name tiny",
        "source model made here",
        "vision width 192, layers 5, heads 6, mlp 384, image_px 112, patch_px 14",
        "geometry view_px 112, grid 8 x 8, separator_tokens 1",
        "limits max_tiles 6, max_model_len 768, max_pixels 400000000, max_images 1, batch_size 1",
        "defaults tiling auto, reduce threshold, threshold 0.95, keep 0.5, max_new_tokens 64",
        "made with torch 2.13.0, onnxruntime 1.32.0",
        "vision/cpu/model.onnx vision.graph cpu fp16 1.8 KiB",
        "tokenizer.json tokenizer any - 2 B",
        "in all all 2.4 KiB",
        "vision max_abs_error 1.5e-06 0.0001 yes",
    ]:
        assert expected in lines, expected


def test_a_damaged_bundle_is_two_lines(tiny_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny_bundle.root / "tokenizer.json").unlink()
    assert execute(["info", str(tiny_bundle.root)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    first, second = printed.err.splitlines()
    assert first.startswith("error: tokenizer.json is missing")
    assert second.startswith("fix: ")


def test_without_a_bundle_it_is_the_embedded_one(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_edge.pipeline.answering.preflight.NANO", tiny_bundle.root)
    assert execute(["info", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"


def test_a_folder_that_is_none_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["info", str(tmp_path / "nothing")]) == 2
    assert "is not a folder" in capsys.readouterr().err
