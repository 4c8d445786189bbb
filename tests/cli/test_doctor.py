"""vlm-edge doctor: what it finds, what it makes of that, and its exit code."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from vlm_edge.cli.main import execute
from vlm_edge.core.bundle import Bundle
from vlm_edge.pipeline import machine
from vlm_edge.pipeline.checking import doctor
from vlm_edge.pipeline.checking.doctor import Need, judge
from vlm_edge.pipeline.machine import Gpu, Machine

ROOT = Path(__file__).resolve().parents[2]
BASE = {need.package: need.least for need in doctor.BASE}
BUILD = {need.package: need.least for need in doctor.BUILD}
H100 = Gpu("NVIDIA H100", 80 << 30, 79 << 30, "570.1", "9.0")
HEALTHY = Machine(
    python="CPython 3.11.7",
    system="Linux 6.8",
    arch="x86_64",
    cores=4,
    threads=8,
    total_bytes=16 << 30,
    available_bytes=8 << 30,
    jetson="",
    gpus=(),
    gpu_problem="",
    versions={**BASE, "onnxruntime": "1.32.0"},
    providers=("CPUExecutionProvider",),
    runtime_problem="",
    bundle_problem="",
    runtime_bytes=80 << 20,
)


def verdict(found: Machine) -> dict[str, doctor.Check]:
    return {check.command: check for check in judge(found)}


def having(found: Machine, **versions: str | None) -> Machine:
    merged = {**found.versions, **{name.replace("_", "-"): version for name, version in versions.items()}}
    return replace(found, versions={name: version for name, version in merged.items() if version is not None})


def test_a_runtime_installation_can_run_and_names_what_installs_the_rest() -> None:
    checks = verdict(HEALTHY)
    assert {name: check.ok for name, check in checks.items()} == {
        "run": True, "export": False, "quantize": False, "tensorrt": False, "report": False,
    }  # fmt: skip
    assert checks["run"].fix == ""
    assert checks["export"].fix == checks["quantize"].fix == "pip install 'vlm-edge[build]'"
    assert checks["export"].missing == ("torch>=2.13", "transformers>=5.23,<6", "onnx>=1.19", "onnxscript>=0.7")
    assert checks["quantize"].missing[-1] == "onnxruntime-genai>=0.18"
    assert checks["report"].fix == "pip install 'vlm-edge[report]'"


def test_a_machine_with_everything_can_do_everything() -> None:
    found = replace(
        HEALTHY, gpus=(H100,), versions={**HEALTHY.versions, **BUILD, "tensorrt": "10.9", "matplotlib": "3.11"}
    )
    assert all(check.ok and not check.fix and not check.missing for check in judge(found))


@pytest.mark.parametrize(
    ("change", "missing", "fix"),
    [
        ({"onnxruntime": None}, "onnxruntime>=1.22", "pip install 'vlm-edge[cpu]'"),
        ({"onnxruntime": "1.21.9"}, "onnxruntime>=1.22", "pip install 'vlm-edge[cpu]'"),
        ({"tokenizers": None}, "tokenizers>=0.21", "pip install 'vlm-edge[cpu]'"),
        ({"onnxruntime_gpu": "1.31"}, "both are installed", "pip uninstall -y onnxruntime onnxruntime-gpu && "),
    ],
)
def test_what_run_lacks_is_named_with_one_command(change: dict[str, str | None], missing: str, fix: str) -> None:
    check = verdict(having(HEALTHY, **change))["run"]
    assert not check.ok
    assert missing in check.missing[0]
    assert check.fix.startswith(fix)


def test_broken_libraries_and_bundles_are_named() -> None:
    broken = verdict(replace(HEALTHY, runtime_problem="libstdc++.so.6: version not found"))["run"]
    assert (broken.ok, broken.missing) == (False, ("libstdc++.so.6: version not found",))
    damaged = verdict(replace(HEALTHY, bundle_problem="x.onnx is missing"))["run"]
    assert (damaged.ok, damaged.missing) == (False, ("embedded bundle: x.onnx is missing",))


@pytest.mark.parametrize(
    ("arch", "jetson", "extra"),
    [
        ("x86_64", "", "gpu"),
        ("aarch64", "", "gpu"),  # a Grace server: PyPI has aarch64 wheels of onnxruntime-gpu
        ("riscv64", "", "cpu"),
        ("aarch64", "NVIDIA Jetson AGX Thor (R38 (release), REVISION: 2.0)", "gpu"),  # JetPack 7: CUDA 13
        ("aarch64", "NVIDIA Orin NX (R36 (release), REVISION: 4.3)", "cpu"),  # JetPack 6: CUDA 12
        ("aarch64", "NVIDIA Jetson Orin Nano", "cpu"),  # of an unknown release
    ],
)
def test_a_gpu_chooses_the_extra_where_there_is_a_wheel(arch: str, jetson: str, extra: str) -> None:
    bare = having(replace(HEALTHY, gpus=(H100,), arch=arch, jetson=jetson), onnxruntime=None)
    assert verdict(bare)["run"].fix == f"pip install 'vlm-edge[{extra}]'"
    assert verdict(replace(bare, gpus=()))["run"].fix == "pip install 'vlm-edge[cpu]'"


def test_beside_onnxruntime_gpu_the_builder_gets_an_environment_of_its_own() -> None:
    found = having(replace(HEALTHY, gpus=(H100,)), onnxruntime=None, onnxruntime_gpu="1.31.1")
    checks = verdict(found)
    assert checks["run"].ok
    assert checks["export"].fix == "pip install 'vlm-edge[build-gpu]'"
    assert "venv" in checks["quantize"].fix


def test_nothing_at_all_asks_for_both_extras_of_a_builder() -> None:
    assert verdict(replace(HEALTHY, versions={}))["export"].fix == "pip install 'vlm-edge[cpu,build]'"


def test_tensorrt_comes_with_jetpack_or_from_the_extra() -> None:
    assert verdict(replace(HEALTHY, jetson="Orin"))["tensorrt"].fix.startswith("sudo apt-get install")
    assert verdict(replace(HEALTHY, gpus=(H100,)))["tensorrt"].fix == "pip install 'vlm-edge[tensorrt]'"
    assert "an NVIDIA GPU" in verdict(HEALTHY)["tensorrt"].missing


@pytest.mark.parametrize(
    ("version", "met"),
    [("5.22.9", False), ("5.23", True), ("5.23.0", True), ("5.23.0+cpu", True), ("5.100.1", True), ("6.0", False),
     ("5.24.0rc1", True), ("10", False), ("unknown", False)],
)  # fmt: skip
def test_releases_are_compared_as_numbers(version: str, met: bool) -> None:
    assert Need("transformers", "5.23", "6").is_met({"transformers": version}) is met


def test_the_needs_are_those_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]

    def needs(lines: list[str]) -> set[str]:
        found = [Requirement(line) for line in lines]
        return {f"{r.name} {sorted(map(str, r.specifier))}" for r in found if r.name != "vlm-edge"}

    def ours(table: tuple[Need, ...]) -> set[str]:
        return needs([str(need) for need in table])

    assert ours(doctor.BASE) == needs(project["dependencies"])
    assert ours(doctor.CPU) == needs(extras["cpu"])
    assert ours(doctor.GPU) == needs(extras["gpu"])
    assert ours(doctor.BUILD_GPU) == needs(extras["build-gpu"])
    assert ours(doctor.BUILD) == needs(extras["build-gpu"] + extras["build"])
    assert ours(doctor.TENSORRT) == needs(extras["tensorrt"])
    assert ours(doctor.REPORT) == needs(extras["report"])


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[], subprocess.CompletedProcess[str]]) -> list[object]:
    asked: list[object] = []

    def fake(command: object, **options: object) -> subprocess.CompletedProcess[str]:
        asked.append((command, options["timeout"]))
        return answer()

    monkeypatch.setattr("subprocess.run", fake)
    return asked


def said(out: str, err: str = "", code: int = 0) -> Callable[[], subprocess.CompletedProcess[str]]:
    return lambda: subprocess.CompletedProcess("nvidia-smi", code, out, err)


def failing(error: Exception) -> Callable[[], subprocess.CompletedProcess[str]]:
    def fail() -> subprocess.CompletedProcess[str]:
        raise error

    return fail


def test_gpus_are_read_from_the_drivers_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "NVIDIA GeForce RTX 4090, 24564, 23028, 550.54.14, 8.9\nOrin (nvgpu), [N/A], [N/A], 540.4.0, [N/A]\n\nodd\n"
    asked = answering(monkeypatch, said(lines))
    gpus, problem = machine.query_gpus()
    assert gpus == (
        Gpu("NVIDIA GeForce RTX 4090", 24564 << 20, 23028 << 20, "550.54.14", "8.9"),
        Gpu("Orin (nvgpu)", None, None, "540.4.0", "[N/A]"),
    )
    assert problem == ""
    assert asked == [
        (("nvidia-smi", f"--query-gpu={','.join(machine.GPU_FIELDS)}", "--format=csv,noheader,nounits"), 5)
    ]


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (failing(FileNotFoundError()), ""),
        (failing(subprocess.TimeoutExpired("nvidia-smi", 5)), "did not answer within 5 s"),
        (failing(PermissionError("denied")), "cannot be run: denied"),
        (said("NVIDIA-SMI has failed because it couldn't\ncommunicate", code=9), "NVIDIA-SMI has failed"),
        (said("", code=1), "exit code 1"),
    ],
)
def test_a_tool_that_fails_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[], subprocess.CompletedProcess[str]], problem: str
) -> None:
    answering(monkeypatch, answer)
    gpus, found = machine.query_gpus()
    assert gpus == ()
    assert problem in found
    assert bool(problem) == bool(found)


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, ""),
        ({"proc/device-tree/model": "Raspberry Pi 5 Model B\0"}, ""),
        ({"proc/device-tree/model": "NVIDIA Jetson Orin Nano\0"}, "NVIDIA Jetson Orin Nano"),
        (
            {
                "proc/device-tree/model": "NVIDIA Orin NX\0",
                "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
            },
            "NVIDIA Orin NX (R36 (release), REVISION: 4.3)",
        ),
        ({"etc/nv_tegra_release": "# R35 (release), REVISION: 1.0, GCID: 1"}, "Jetson (R35 (release), REVISION: 1.0)"),
    ],
)
def test_a_jetson_is_recognised(tmp_path: Path, files: dict[str, str], found: str) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine.detect_jetson(tmp_path) == found


def test_versions_come_from_metadata_and_what_is_missing_is_left_out() -> None:
    assert machine.installed(("numpy", "no-such-package")) == {"numpy": metadata.version("numpy")}


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_shows_this_machine(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    monkeypatch.setattr("vlm_edge.pipeline.embedded.NANO", tiny_bundle.root)
    assert execute(["doctor", "--json"] if as_json else ["doctor"]) == 0
    out = capsys.readouterr().out
    if not as_json:
        for expected in ("ONNX Runtime", "CPUExecutionProvider", "real", "GiB", metadata.version("numpy")):
            assert expected in out
        return
    shown = json.loads(out)
    assert shown["ok"] is True
    assert shown["machine"]["bundle_problem"] == ""
    assert shown["machine"]["total_bytes"] >= shown["machine"]["available_bytes"] > 0
    assert 1 <= shown["machine"]["cores"] <= shown["machine"]["threads"]
    assert shown["machine"]["runtime_bytes"] > 10 << 20
    assert shown["packages"]["numpy"] == metadata.version("numpy")
    assert shown["packages"]["onnxruntime-gpu"] is None
    assert [command["command"] for command in shown["commands"]] == ["run", "export", "quantize", "tensorrt", "report"]


def test_a_damaged_embedded_bundle_makes_the_exit_code_1(
    tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_bundle.root / "tokenizer.json"
    file.write_bytes(bytes([file.read_bytes()[0] ^ 1]) + file.read_bytes()[1:])
    monkeypatch.setattr("vlm_edge.pipeline.embedded.NANO", tiny_bundle.root)
    assert execute(["doctor", "--json"]) == 1
    assert "SHA-256" in json.loads(capsys.readouterr().out)["machine"]["bundle_problem"]


def test_a_missing_numpy_is_found_and_not_fallen_over(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "vlm_edge.pipeline.answering.run", None)
    assert execute(["doctor", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert shown["machine"]["bundle_problem"].startswith("not checked")


def test_torch_is_not_imported() -> None:
    program = "import sys; from vlm_edge.cli.main import execute; execute(['doctor']); sys.exit('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": ""}
    )
    assert done.returncode == 0, done.stderr
