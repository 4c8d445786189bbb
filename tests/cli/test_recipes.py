"""vlm-edge recipes: what is listed, shown and found wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_edge.cli.main import execute
from vlm_edge.core.recipe import recipe_names
from vlm_edge.core.resources import resource_dir

Captured = pytest.CaptureFixture[str]


def shipped(name: str) -> Path:
    return resource_dir("recipes") / f"{name}.yaml"


def changed(tmp_path: Path, recipe: str, **parts: Any) -> str:
    """A shipped recipe under its own name with parts of it changed."""
    content = yaml.safe_load(shipped(recipe).read_text("utf-8"))
    for part, values in parts.items():
        content[part] = content.get(part, {}) | values if isinstance(values, dict) else values
    path = tmp_path / f"{recipe}.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return str(path)


def test_the_list_has_every_file(capsys: Captured) -> None:
    assert execute(["recipes", "list", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["recipes"]}
    assert sorted(rows) == sorted(path.stem for path in resource_dir("recipes").glob("*.yaml"))
    assert rows["llava-1.5-7b"] == {
        "name": "llava-1.5-7b", "family": "llava", "llm": "int4", "vision": "fp32", "max_tiles": 4,
        "max_model_len": 4096, "model": "llava-hf/llava-1.5-7b-hf", "parameters": 7063427072,
    }  # fmt: skip
    assert (rows["nano"]["model"], rows["nano"]["parameters"]) == (None, None)
    assert execute(["recipes", "list"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]} == set(rows)


def test_show_prints_the_file_or_its_values(tmp_path: Path, capsys: Captured) -> None:
    assert execute(["recipes", "show", "nano"]) == 0
    shown = capsys.readouterr().out
    assert shown == shipped("nano").read_text("utf-8")
    again = tmp_path / "nano.yaml"
    again.write_text(shown, "utf-8")
    assert execute(["recipes", "show", str(again), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["limits"] == {
        "max_tiles": 6, "max_model_len": 768, "max_pixels": 400000000, "max_images": 1, "batch_size": 1,
    }  # fmt: skip


@pytest.mark.parametrize("command", ["show", "check"])
def test_near_names_are_offered(command: str, capsys: Captured) -> None:
    assert execute(["recipes", command, "qwen2.5-vl-7"]) == 2
    error, fix = capsys.readouterr().err.splitlines()
    assert error == "error: there is no recipe 'qwen2.5-vl-7'"
    assert "did you mean qwen2.5-vl-7b" in fix


def test_every_shipped_recipe_passes(capsys: Captured) -> None:
    assert execute(["recipes", "check", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"]
    assert [row["name"] for row in report["recipes"]] == recipe_names()
    about = {row["name"]: row["about"] for row in report["recipes"]}
    assert "576 visual tokens" not in about["llava-1.5-7b"]
    assert "2880 visual tokens in a context of 4096" in about["llava-1.5-7b"]  # 1 + 4 views of 576


@pytest.mark.parametrize(
    ("name", "parts", "says", "fix"),
    [
        ("llava-1.5-7b", {"limits": {"max_tilse": 4}}, "limits.max_tilse", "'max_tiles'"),
        ("llava-1.5-7b", {"limits": {"max_tiles": -1}}, "limits.max_tiles is -1", "schema"),
        ("llava-1.5-7b", {"packing": {"llm": "int44"}}, "packing.llm has no value 'int44'", "int4"),
        ("llava-1.5-7b", {"packing": {"group_size": 0}}, "packing.group_size is 0", "128"),
        ("llava-1.5-7b", {"defaults": {"tiling": "atuo"}}, "defaults.tiling is 'atuo'", "schema"),
        ("llava-1.5-7b", {"defaults": {"max_new_tokens": 4096}}, "leaves nothing of 4096", "schema"),
        ("llava-1.5-7b", {"family": "lava"}, "there is no model family 'lava'", "'llava'"),
        ("llava-1.5-7b", {"model": {"config": {"model_type": "llava"}}}, "config", ""),
        ("paligemma-3b-448", {"defaults": {"tiling": "auto"}}, "--tiling auto is not offered", "--tiling"),
        ("qwen2.5-vl-7b", {"defaults": {"reduce": "threshold"}}, "--reduce threshold would break", "--reduce none"),
        ("llava-1.5-7b", {"packing": {"lm_head": "fp8"}}, "packing.lm_head has no value 'fp8'", "fp16"),
        (
            "llava-1.5-7b",
            {"packing": {"llm": "fp16", "kv_cache": "int8"}},
            "packing.kv_cache is for decoders",
            "leave it",
        ),
        ("llava-1.5-7b", {"devices": ["rtx-4061"]}, "there is no device", "rtx-4060"),
        (
            "llava-1.5-7b",
            {"devices": ["jetson-orin-nano-8gb"]},
            "it does not fit jetson-orin-nano-8gb",
            "lower its limits",
        ),
        ("nano", {"devices": ["rtx-4060"]}, "the recipe has no model", "leave devices out"),
        ("qwen2.5-vl-7b", {"join_rows": True}, "join_rows is for tiles that may lie anywhere", "leave it out"),
        ("nano", {"name": "mini"}, "says that its name is 'mini'", "agree"),
    ],
)
def test_what_is_wrong_is_named(
    name: str, parts: dict[str, Any], says: str, fix: str, tmp_path: Path, capsys: Captured
) -> None:
    path = changed(tmp_path, name, **parts)
    assert execute(["recipes", "check", path, "--json"]) == 1
    (row,) = json.loads(capsys.readouterr().out)["recipes"]
    assert not row["ok"]
    assert says in row["problem"]
    assert fix in row["fix"]
    assert execute(["recipes", "check", "nano", path]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ["yes", "no"]


def test_a_file_that_is_not_there_is_no_recipe_that_is_wrong(capsys: Captured) -> None:
    assert execute(["recipes", "check", "nowhere.yaml"]) == 2
    assert "nowhere.yaml does not exist" in capsys.readouterr().err


def test_the_schema_is_json(capsys: Captured) -> None:
    assert execute(["recipes", "schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "vlm-edge recipe"


@pytest.mark.parametrize("group", ["recipes", "profiles"])
def test_a_group_alone_shows_its_help(group: str, capsys: Captured) -> None:
    assert execute([group]) == 0
    alone = capsys.readouterr()
    assert alone.err == ""
    assert execute([group, "--help"]) == 0
    assert alone.out == capsys.readouterr().out
    assert f"Example: vlm-edge {group} show" in alone.out


@pytest.mark.parametrize(
    "words", [("recipes", c) for c in ("list", "show", "check", "schema")] + [("profiles", c) for c in ("list", "show", "check")]
)  # fmt: skip
def test_every_help_has_an_example(words: tuple[str, str], capsys: Captured) -> None:
    assert execute([*words, "--help"]) == 0
    assert f"Example: vlm-edge {' '.join(words)}" in " ".join(capsys.readouterr().out.split())
    assert execute([words[0], "lsit"]) == 2
    assert "Did you mean 'list'" in capsys.readouterr().err
