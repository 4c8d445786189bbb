"""What each command needs, whether a machine has it, and the one line that installs what is missing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vlm_edge.pipeline.machine import Machine

RUNTIME, RUNTIME_GPU, BUILDER = "onnxruntime", "onnxruntime-gpu", "onnxruntime-genai"
GPU_WHEELS = ("x86_64", "amd64", "aarch64", "arm64")
FIRST_L4T_WITH_CUDA_13 = 38


@dataclass(frozen=True)
class Need:
    """A package and the releases of it that work: `least` and later, but before `below` where that is given."""

    package: str
    least: str
    below: str = ""

    def is_met(self, versions: Mapping[str, str]) -> bool:
        """Whether one of the releases that work is installed."""
        found = versions.get(self.package)
        if found is None or _release(found) < _release(self.least):
            return False
        return not self.below or _release(found) < _release(self.below)

    def __str__(self) -> str:
        return f"{self.package}>={self.least}" + (f",<{self.below}" if self.below else "")


# As pyproject.toml has them; a test compares the two.
BASE = (
    Need("jinja2", "3.1.6"), Need("numpy", "1.26"), Need("pillow", "11"), Need("pydantic", "2.9"), Need("pyyaml", "6"),
    Need("safetensors", "0.5"), Need("tokenizers", "0.21"), Need("typer", "0.27.2"),
)  # fmt: skip
CPU, GPU = (Need(RUNTIME, "1.22"),), (Need(RUNTIME_GPU, "1.22"),)
BUILD_GPU = (Need("torch", "2.13"), Need("transformers", "5.23", "6"), Need("onnx", "1.19"), Need("onnxscript", "0.7"))
BUILD = (*BUILD_GPU, Need(BUILDER, "0.18"))
TENSORRT = (Need("tensorrt", "10"),)
REPORT = (Need("matplotlib", "3.9"),)


@dataclass(frozen=True)
class Check:
    """Whether a command can work here, why not, and what to do about it (empty where nothing is to be done)."""

    command: str
    ok: bool
    missing: tuple[str, ...]
    fix: str


def judge(machine: Machine) -> tuple[Check, ...]:
    """Which commands can work on a machine; `run` comes first."""
    return (
        _run(machine),
        _build("export", BUILD_GPU, machine),
        _build("quantize", BUILD, machine),
        _tensorrt(machine),
        _check("report", _unmet(REPORT, machine), "pip install 'vlm-edge[report]'"),
    )


def _run(machine: Machine) -> Check:
    if has_both_runtimes(machine):
        extra = variant(machine)
        fix = f"pip uninstall -y {RUNTIME} {RUNTIME_GPU} && pip install --force-reinstall 'vlm-edge[{extra}]'"
        return Check("run", False, (f"one of {RUNTIME} and {RUNTIME_GPU}: both are installed",), fix)
    packages = _unmet(BASE, machine) + _unmet_runtime(machine)
    if packages:
        return Check("run", False, packages, f"pip install 'vlm-edge[{variant(machine)}]'")
    if machine.runtime_problem:
        fix = f"pip install --force-reinstall 'vlm-edge[{variant(machine)}]'"
        return Check("run", False, (machine.runtime_problem,), fix)
    if machine.bundle_problem:
        fix = "pip install --force-reinstall --no-deps vlm-edge, or name a bundle with --bundle"
        return Check("run", False, (f"embedded bundle: {machine.bundle_problem}",), fix)
    return Check("run", True, (), "")


def _build(command: str, needs: tuple[Need, ...], machine: Machine) -> Check:
    """The decoder's builder requires onnxruntime, which must not join onnxruntime-gpu: it then gets its own place."""
    missing = _unmet(needs, machine) + _unmet_runtime(machine)
    if RUNTIME_GPU not in machine.versions:
        extras = "build" if RUNTIME in machine.versions else "cpu,build"
        return _check(command, missing, f"pip install 'vlm-edge[{extras}]'")
    if BUILDER in {need.package for need in needs}:
        return _check(command, missing, "python3 -m venv build-env && build-env/bin/pip install 'vlm-edge[cpu,build]'")
    return _check(command, missing, "pip install 'vlm-edge[build-gpu]'")


def _tensorrt(machine: Machine) -> Check:
    packages = _unmet(TENSORRT, machine)
    if machine.jetson:
        return _check("tensorrt", packages, "sudo apt-get install tensorrt python3-libnvinfer")
    if not machine.gpus:
        return Check("tensorrt", False, (*packages, "an NVIDIA GPU"), "use a machine with an NVIDIA GPU and its driver")
    return _check("tensorrt", packages, "pip install 'vlm-edge[tensorrt]'")


def _check(command: str, missing: tuple[str, ...], fix: str) -> Check:
    return Check(command, not missing, missing, fix if missing else "")


def _unmet(needs: tuple[Need, ...], machine: Machine) -> tuple[str, ...]:
    return tuple(str(need) for need in needs if not need.is_met(machine.versions))


def _unmet_runtime(machine: Machine) -> tuple[str, ...]:
    """Either variant will do."""
    return () if any(need.is_met(machine.versions) for need in (*CPU, *GPU)) else (str(*CPU),)


def has_both_runtimes(machine: Machine) -> bool:
    """Whether the two distributions that overwrite each other's files are both installed."""
    return RUNTIME in machine.versions and RUNTIME_GPU in machine.versions


def variant(machine: Machine) -> str:
    """The extra with the ONNX Runtime that suits a machine: `gpu` where there is a GPU and a wheel for it.

    PyPI's aarch64 wheels of onnxruntime-gpu need CUDA 13 and glibc 2.34: JetPack 7 (L4T 38) has both, JetPack 6 neither.
    """
    l4t = re.search(r"\bR(\d+)", machine.jetson)
    too_old = bool(machine.jetson) and (l4t is None or int(l4t[1]) < FIRST_L4T_WITH_CUDA_13)
    return "gpu" if machine.gpus and machine.arch.lower() in GPU_WHEELS and not too_old else "cpu"


def _release(version: str) -> tuple[int, ...]:
    """`2.13.0+cpu` -> (2, 13, 0); pre-releases count as their release."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in match[0].split(".")) if match else ()
