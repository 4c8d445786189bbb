"""vlm-edge profiles: what is listed, shown and found wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from vlm_edge.cli.main import execute
from vlm_edge.core.resources import resource_dir

Captured = pytest.CaptureFixture[str]


def test_the_list_has_every_file(capsys: Captured) -> None:
    files = sorted(resource_dir("profiles").glob("*.yaml"))
    assert execute(["profiles", "list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["profiles"]
    assert [row["name"] for row in rows] == [path.stem for path in files]
    for row, path in zip(rows, files, strict=True):
        written = yaml.safe_load(path.read_text("utf-8"))
        assert row["usable_bytes"] == written["usable_bytes"]["value"]
        assert row["bandwidth_bytes_per_s"] == written["bandwidth"]["value"]
    assert execute(["profiles", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(files)
    assert [" ".join(line.split()) for line in lines if line.startswith("l4")] == [
        "l4 NVIDIA L4 cuda 22.5 GiB 279 GiB/s int8 242 T/s"
    ]


def test_show_has_each_figure_with_its_source(capsys: Captured) -> None:
    written = yaml.safe_load((resource_dir("profiles") / "rtx-4090.yaml").read_text("utf-8"))
    assert execute(["profiles", "show", "rtx-4090"]) == 0
    text = capsys.readouterr().out
    for figure in (written["total_bytes"], written["bandwidth"], *written["flops"].values()):
        assert figure["source"] in text
    assert execute(["profiles", "show", "rtx-4090", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert {key: values[key] for key in written} == written


@pytest.mark.parametrize("command", ["show", "check"])
def test_near_names_are_offered(command: str, capsys: Captured) -> None:
    assert execute(["profiles", command, "rtx4090"]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error == "error: there is no device profile 'rtx4090'"
    assert "rtx-4090" in fix


def test_check_passes_the_shipped_and_names_what_is_wrong(tmp_path: Path, capsys: Captured) -> None:
    assert execute(["profiles", "check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"]
    wrong = yaml.safe_load((resource_dir("profiles") / "l4.yaml").read_text("utf-8"))
    del wrong["bandwidth"]["source"]
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(wrong), "utf-8")
    assert execute(["profiles", "check", "l4", str(path), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)["profiles"]
    assert [row["ok"] for row in rows] == [True, False]
    assert "bandwidth.source" in rows[1]["problem"]
    assert execute(["profiles", "check", str(tmp_path / "none.yaml")]) == 2
    assert "does not exist" in capsys.readouterr().err
