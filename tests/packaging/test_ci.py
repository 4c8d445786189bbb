"""CI runs the command that README documents, retries only installs, and fails if any step fails."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARKER = "<!-- test-command -->"
GATES = ("pytest", "ruff", "mypy", "lint-imports")


def readme(*lines: str, marker: str = MARKER) -> str:
    return "\n".join(["# Title", "```bash", "echo another block", "```", marker, "```bash", *lines, "```", ""])


def extract(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "README.md").write_text(text)
    command = [sys.executable, str(ROOT / ".ci" / "test_command.py"), str(tmp_path / "README.md")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    """A repository whose environment holds shell scripts: each writes down its call and exits with 0."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "README.md").write_text(readme("python3 -V && .venv/bin/pip install demo && .venv/bin/pytest -q"))
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("pip", *GATES):
        program(tmp_path, name, "exit 0")
    return tmp_path


def program(repository: Path, name: str, body: str) -> None:
    path = repository / ".venv" / "bin" / name
    path.write_text(f'#!/bin/sh\necho "{name} $*" >>calls\n{body}\n')
    path.chmod(0o755)


def run_ci(repository: Path) -> tuple[int, str, list[str]]:
    """Exit code, output and the calls that the stub programs saw."""
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [str(repository / ".ci" / "run")],
        cwd="/",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    calls = repository / "calls"
    return done.returncode, done.stdout, calls.read_text().splitlines() if calls.exists() else []


def test_the_documented_command_makes_its_own_environment_and_ends_in_pytest() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "test_command.py"), str(ROOT / "README.md")],
        capture_output=True,
        text=True,
        check=True,
    )
    links = done.stdout.strip().split(" && ")
    assert links[0].startswith("python3 -m venv ")
    assert "torch==" in links[1], "an unpinned torch may be several GB"
    assert links[-1].split()[0].endswith("/pytest")


def test_the_marked_block_is_taken_and_no_other(tmp_path: Path) -> None:
    done = extract(tmp_path, readme("python3 -m pytest"))
    assert (done.returncode, done.stdout) == (0, "python3 -m pytest\n")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (readme("python3 a", marker=""), "found 0"),
        (readme("python3 a") + readme("python3 b"), "found 2"),
        (f"{MARKER}\nno block here\n", "no fenced block"),
        (readme("python3 a", "python3 b"), "one line"),
        (readme("python3 a \\"), "one line"),
        (readme("pytest"), "bare python3"),
    ],
)
def test_an_unclear_readme_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    done = extract(tmp_path, text)
    assert done.returncode != 0
    assert complaint in done.stderr


def test_all_steps_pass(stub: Path) -> None:
    code, output, calls = run_ci(stub)
    assert code == 0, output
    assert calls == [
        "pip install demo",
        "pytest -q",
        "ruff format --check .",
        "ruff check .",
        "mypy ",
        "lint-imports ",
    ]


def test_an_install_is_retried_once(stub: Path) -> None:
    program(stub, "pip", "test -e seen || { touch seen; exit 1; }")
    code, output, calls = run_ci(stub)
    assert code == 0, output
    assert calls.count("pip install demo") == 2


def test_an_install_that_fails_twice_ends_the_run(stub: Path) -> None:
    program(stub, "pip", "exit 1")
    code, output, calls = run_ci(stub)
    assert code != 0
    assert "failed twice" in output
    assert calls == ["pip install demo"] * 2


@pytest.mark.parametrize("gate", GATES)
def test_one_failing_gate_fails_the_run_after_the_others_ran(stub: Path, gate: str) -> None:
    program(stub, gate, "echo '3 failed in 1.00s'; exit 1")
    code, output, calls = run_ci(stub)
    assert code == 1
    assert gate in output.rpartition("FAILED:")[2]
    assert {call.split()[0] for call in calls} == {"pip", *GATES}


def test_the_closing_lines_of_pytest_come_back_at_the_end(stub: Path) -> None:
    program(stub, "pytest", "echo '= 12 passed in 3.45s ='; echo warned >&2")
    _, output, _ = run_ci(stub)
    assert "12 passed in 3.45s" in output.rpartition("pytest closed with:")[2]
