"""The rules of the code base that no linter knows, read from the sources and from a fresh interpreter."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vlm_edge"
SOURCES = sorted(
    path for top in ("vlm_edge", "recipes", "tests", "benchmarks", "docs") for path in (ROOT / top).rglob("*.py")
)
PACKAGE_SOURCES = sorted(PACKAGE.rglob("*.py"))

MAX_LINES = 400
EMPTY_NAMES = {"common", "helper", "helpers", "misc", "util", "utils"}
FRAMEWORKS = {"onnx", "onnxruntime", "onnxruntime_genai", "onnxscript", "tensorrt", "torch", "transformers"}
LIGHT = ("core", "memory", "tokens", "vision")
# Pure maths has no clock, no log and no files: see CONTRIBUTING.md.
SIDE_EFFECTS = {"datetime", "io", "logging", "os", "pathlib", "shutil", "subprocess", "tempfile", "time"}
PURE_MATHS = ("memory", "tokens", "quant/qparams.py")
SLOW_TO_IMPORT = {"numpy", "onnxruntime", "pydantic", "torch", "transformers"}
# Folders of tests/ that mirror nothing, because what they test is not one part of the package.
TESTS_OF_THE_WHOLE = {"packaging", "data"}
UNOWNED = re.compile(r"\b(?:TOD[O]|FIXM[E])\b(?! ?\(?#\d+)")


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def sources_under(*parts: str) -> list[Path]:
    """The package's files that lie in, or are, one of `parts` (paths inside vlm_edge/)."""
    return [path for path in PACKAGE_SOURCES if any(path.is_relative_to(PACKAGE / part) for part in parts)]


def imported_packages(tree: ast.AST) -> set[str]:
    """Top-level names of all absolute imports, wherever they stand, and of literal calls of `import_module`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                found.update(alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                found.add(module)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(module)), *_],
            ):
                found.add(module)
    return {name.partition(".")[0] for name in found}


def names_taken_from_the_root(tree: ast.AST) -> set[str]:
    """What `from vlm_edge import ...` asks the package root for."""
    asked = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.module == "vlm_edge" and n.level == 0]
    return {alias.name for node in asked for alias in node.names}


def lines_that_branch_on_model_type(tree: ast.AST) -> Iterator[int]:
    """Lines that compare or match something called `model_type` with a constant; a look-up in a table is fine."""

    def is_model_type(node: ast.expr) -> bool:
        match node:
            case ast.Name(id="model_type") | ast.Attribute(attr="model_type"):
                return True
            case ast.Subscript(slice=ast.Constant(value="model_type")):
                return True
            case ast.Call(args=[ast.Constant(value="model_type"), *_]):
                return True
        return False

    def is_text(node: ast.expr) -> bool:
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            return any(is_text(item) for item in node.elts)
        return isinstance(node, ast.Constant) and isinstance(node.value, str)

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(map(is_model_type, sides)) and any(map(is_text, sides)):
                yield node.lineno
        elif isinstance(node, ast.Match) and is_model_type(node.subject):
            yield node.lineno


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def test_files_are_short() -> None:
    lengths = {relative(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {path: count for path, count in lengths.items() if count > MAX_LINES} == {}


def test_files_and_folders_are_named_after_what_they_hold() -> None:
    assert [relative(path) for path in SOURCES if EMPTY_NAMES & {path.stem, *path.relative_to(ROOT).parts}] == []


def test_open_work_has_an_issue_number() -> None:
    found = [
        f"{relative(path)}:{number}"
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if UNOWNED.search(line)
    ]
    assert found == []


def test_only_families_branch_on_the_model_type() -> None:
    outside = [path for path in PACKAGE_SOURCES if not path.is_relative_to(PACKAGE / "models")]
    found = [f"{relative(path)}:{line}" for path in outside for line in lines_that_branch_on_model_type(parse(path))]
    assert found == []


@pytest.mark.parametrize(
    ("parts", "forbidden"), [(LIGHT, FRAMEWORKS), (PURE_MATHS, SIDE_EFFECTS)], ids=["frameworks", "side effects"]
)
def test_pure_parts_import_nothing_impure(parts: tuple[str, ...], forbidden: set[str]) -> None:
    found = {relative(path): imported_packages(parse(path)) & forbidden for path in sources_under(*parts)}
    assert {path: names for path, names in found.items() if names} == {}


def test_inner_modules_ask_the_package_root_only_for_its_version() -> None:
    # The root resolves `Pipeline` lazily, so import-linter has to ignore what it imports; this closes that gap.
    subpackages = {path.name for path in PACKAGE.iterdir() if path.is_dir()} | {"errors", "units"}
    allowed = subpackages | {"__version__"}
    found = {relative(path): names_taken_from_the_root(parse(path)) - allowed for path in PACKAGE_SOURCES}
    assert {path: names for path, names in found.items() if names} == {}


def test_families_know_nothing_of_each_other() -> None:
    folders = sorted(path for path in (PACKAGE / "models").iterdir() if path.is_dir() and path.name != "__pycache__")
    names = {folder.name for folder in folders}
    found = {}
    for folder in folders:
        others = names - {folder.name}
        for path in folder.rglob("*.py"):
            modules = {n.module for n in ast.walk(parse(path)) if isinstance(n, ast.ImportFrom) and n.module}
            asked = {m.split(".")[2] for m in modules if m.startswith("vlm_edge.models.") and len(m.split(".")) > 2}
            if asked & others:
                found[relative(path)] = asked & others
    assert found == {}


def test_every_folder_of_the_package_is_a_regular_package() -> None:
    # import-linter does not look into a folder without __init__.py.
    folders = {path.parent for path in PACKAGE_SOURCES}
    assert sorted(relative(folder) for folder in folders if not (folder / "__init__.py").is_file()) == []


def test_import_contracts_hold() -> None:
    command = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("arguments", [None, ["--help"]], ids=["import", "--help"])
def test_the_command_line_starts_without_heavy_imports(arguments: list[str] | None, tmp_path: Path) -> None:
    report = tmp_path / "modules.json"
    program = f"""
import atexit, json, pathlib, sys
atexit.register(lambda: pathlib.Path({str(report)!r}).write_text(json.dumps(sorted(sys.modules))))
from vlm_edge.cli.start import main
import vlm_edge.cli.main
arguments = {arguments!r}
if arguments is not None:
    sys.argv = ["vlm-edge", *arguments]
    sys.exit(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert SLOW_TO_IMPORT & set(json.loads(report.read_text())) == set()
    if arguments is not None:
        assert "run" in done.stdout


def test_folders_of_tests_mirror_the_package() -> None:
    folders = {path.parent.relative_to(ROOT / "tests") for path in (ROOT / "tests").rglob("test_*.py")} - {Path()}
    strays = {
        folder.as_posix()
        for folder in folders
        if folder.parts[0] not in TESTS_OF_THE_WHOLE
        and not (PACKAGE / folder).is_dir()
        and not (ROOT / folder).is_dir()  # recipes/, benchmarks/
    }
    assert strays == set()


def test_every_folder_of_the_package_has_tests() -> None:
    folders = {path.parent.relative_to(PACKAGE) for path in PACKAGE_SOURCES if path.name != "__init__.py"} - {Path()}
    assert {f.as_posix() for f in folders if not any((ROOT / "tests" / f).glob("test_*.py"))} == set()


@pytest.mark.parametrize(
    ("code", "packages"),
    [
        ("import torch.nn as nn", {"torch"}),
        ("def f():\n    from transformers.utils import x", {"transformers"}),
        ("import importlib\nimportlib.import_module('onnx.helper')", {"importlib", "onnx"}),
        ("from .torch import y", set()),
    ],
)
def test_imported_packages_sees_through_disguises(code: str, packages: set[str]) -> None:
    assert imported_packages(ast.parse(code)) == packages


@pytest.mark.parametrize(
    ("code", "branches"),
    [
        ("if config.model_type == 'llava': pass", True),
        ("ok = 'llava' != config['model_type']", True),
        ("ok = config.get('model_type') in ('llava', 'internvl')", True),
        ("match model_type:\n    case 'llava': pass", True),
        ("family = FAMILIES[config.model_type]", False),
        ("ok = config.model_type in family.model_types", False),
        ("ok = config.model_type is None", False),
    ],
)
def test_branches_on_a_model_type_are_told_from_look_ups(code: str, branches: bool) -> None:
    assert bool(list(lines_that_branch_on_model_type(ast.parse(code)))) is branches


@pytest.mark.parametrize(
    ("comment", "unowned"), [("# {} later", True), ("# {}(#12): later", False), ("# {} #12", False), ("METHODS", False)]
)
@pytest.mark.parametrize("word", ["TO" + "DO", "FIX" + "ME"])  # in halves, or this file would find itself
def test_open_work_is_recognised(comment: str, unowned: bool, word: str) -> None:
    assert bool(UNOWNED.search(comment.format(word))) is unowned
