"""The trtexec script, run by sh against a trtexec that writes down its arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from vlm_edge.backends.tensorrt.script import emit_script
from vlm_edge.backends.tensorrt.settings import BuildSettings
from vlm_edge.errors import BadInput
from vlm_edge.units import MIB

SETTINGS = BuildSettings(4, 7, (3, 336, 336), 256 * MIB + 5)
NAMES = ["model.onnx", 'it\'s a $(touch hit) `touch hit` "model".onnx', "-rf *.onnx", "été;#&|.onnx", "plain"]
pytestmark = pytest.mark.skipif(shutil.which("sh") is None, reason="there is no POSIX shell")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder for PATH: a trtexec that records its arguments and obeys EXIT, and the few commands a script needs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "mv", "rm"):
        (folder / name).symlink_to(str(shutil.which(name)))
    fake = folder / "trtexec"
    fake.write_text(
        '#!/bin/sh\nprintf \'%s\\n\' "$@" > "$RECORD"\n'
        'for a; do case $a in --saveEngine=*) echo engine > "${a#--saveEngine=}";; esac; done\n'
        "exit ${EXIT:-0}\n"
    )
    fake.chmod(0o755)
    return folder


def run(script: str, tools: Path, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    work = tools.parent / "work"
    work.mkdir(exist_ok=True)
    (work / "build.sh").write_text(script)
    environment = {"PATH": str(tools), "RECORD": str(tools.parent / "arguments"), "EXIT": str(code)}
    return subprocess.run(
        [str(tools / "sh"), "build.sh", *arguments],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def graph(tools: Path, name: str = "model.onnx") -> Path:
    path = tools.parent / "work" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"graph")
    return path


@pytest.mark.parametrize("shell", ["sh", "dash", "bash"])
@pytest.mark.parametrize("name", NAMES)
def test_the_script_is_valid(shell: str, name: str) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run(
        [program, "-n"], input=emit_script(Path(name), SETTINGS), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", NAMES)
def test_trtexec_gets_the_arguments_of_the_build_whatever_the_name(tools: Path, name: str) -> None:
    graph(tools, name)
    done = run(emit_script(Path(name), SETTINGS), tools)
    engine = f"{name.removesuffix('.onnx')}.engine"
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{engine}\n", "")
    arguments = (tools.parent / "arguments").read_text().splitlines()
    unfinished = next(a for a in arguments if a.startswith("--saveEngine="))
    assert unfinished.startswith(f"--saveEngine={engine}.unfinished.")
    assert [a for a in arguments if a != unfinished] == [
        f"--onnx={name}",
        "--stronglyTyped",
        "--noTF32",
        "--minShapes=pixel_values:1x3x336x336",
        "--optShapes=pixel_values:4x3x336x336",
        "--maxShapes=pixel_values:7x3x336x336",
        "--memPoolSize=workspace:256",
        f"--timingCacheFile={engine}.timing",
        "--skipInference",
    ]
    assert {path.name for path in (tools.parent / "work").iterdir()} == {"build.sh", name, engine}


def test_other_paths_can_be_given(tools: Path) -> None:
    graph(tools, "other graph.onnx")
    done = run(emit_script(Path("absent.onnx"), SETTINGS), tools, "other graph.onnx", "out put.engine")
    assert (done.returncode, done.stdout) == (0, "out put.engine\n")
    assert (tools.parent / "work" / "out put.engine").read_text() == "engine\n"


def test_tf32_is_left_on_where_the_settings_say_so() -> None:
    assert "--noTF32" not in emit_script(Path("model.onnx"), replace(SETTINGS, tf32=True))


def test_without_trtexec_the_script_says_what_to_do(tools: Path) -> None:
    graph(tools)
    (tools / "trtexec").unlink()
    if os.access("/usr/src/tensorrt/bin/trtexec", os.X_OK):
        pytest.skip("this machine has a trtexec where JetPack puts it")
    done = run(emit_script(Path("model.onnx"), SETTINGS), tools)
    assert (done.returncode, done.stdout) == (2, "")
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["error", "fix"]


def test_without_the_graph_the_script_says_so(tools: Path) -> None:
    done = run(emit_script(Path("absent.onnx"), SETTINGS), tools)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "error: there is no absent.onnx"
    assert not (tools.parent / "arguments").exists()


def test_a_build_that_fails_keeps_the_old_engine_and_trtexecs_code(tools: Path) -> None:
    graph(tools)
    old = tools.parent / "work" / "model.engine"
    old.write_text("old")
    assert run(emit_script(Path("model.onnx"), SETTINGS), tools, code=9).returncode == 9
    assert old.read_text() == "old"
    assert {path.name for path in old.parent.iterdir()} == {"build.sh", "model.onnx", "model.engine"}


@pytest.mark.parametrize("name", ["a\nb.onnx", "a\rb.onnx"])
def test_a_name_with_a_line_break_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="cannot stand in a script"):
        emit_script(Path(name), SETTINGS)
