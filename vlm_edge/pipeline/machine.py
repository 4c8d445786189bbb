"""What this machine is made of and what is installed on it, found without importing torch or TensorRT."""

from __future__ import annotations

import contextlib
import importlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from vlm_edge.core import host
from vlm_edge.errors import VlmEdgeError

QUERY_SECONDS = 5
GPU_FIELDS = ("name", "memory.total", "memory.free", "driver_version", "compute_cap")
PACKAGES = (
    "onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "tokenizers", "safetensors", "pydantic", "pyyaml", "jinja2",
    "typer", "torch", "transformers", "onnx", "onnxscript", "onnxruntime-genai", "tensorrt", "matplotlib",
)  # fmt: skip
IMPORTED_LATE = ("jinja2.sandbox", "tokenizers")
"""What a pipeline imports only when it loads a bundle."""
_PIPELINE = "vlm_edge.pipeline.answering.run"


@dataclass(frozen=True)
class Gpu:
    """One line of nvidia-smi; None where the driver does not tell."""

    name: str
    total_bytes: int | None
    free_bytes: int | None
    driver: str
    compute_capability: str


@dataclass(frozen=True)
class Machine:
    """What was found. versions: of those PACKAGES that are installed; problems: one line, or empty without one."""

    python: str
    system: str
    arch: str
    cores: int
    threads: int
    total_bytes: int | None
    available_bytes: int | None
    jetson: str
    gpus: tuple[Gpu, ...]
    gpu_problem: str
    versions: Mapping[str, str]
    providers: tuple[str, ...]
    runtime_problem: str
    bundle_problem: str
    runtime_bytes: int
    """Peak memory of a process that has imported everything which `run` imports, before any weight."""


def examine(root: Path = Path("/")) -> Machine:
    """Look at this machine. Imports ONNX Runtime, but neither torch nor TensorRT; root is where /etc and /proc lie."""
    providers, runtime_problem = _providers()
    bundle_problem = _bundle_problem()
    gpus, gpu_problem = query_gpus()
    return Machine(
        python=f"{platform.python_implementation()} {platform.python_version()}",
        system=f"{platform.system()} {platform.release()}",
        arch=platform.machine(),
        cores=host.real_cores(),
        threads=host.threads(),
        total_bytes=host.total_bytes(),
        available_bytes=host.available_bytes(),
        jetson=detect_jetson(root),
        gpus=gpus,
        gpu_problem=gpu_problem,
        versions=installed(PACKAGES),
        providers=providers,
        runtime_problem=runtime_problem,
        bundle_problem=bundle_problem,
        runtime_bytes=_runtime_bytes(),
    )


def installed(packages: Sequence[str]) -> dict[str, str]:
    """Versions from the packages' metadata; nothing is imported."""
    found = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def query_gpus() -> tuple[tuple[Gpu, ...], str]:
    """NVIDIA's devices, and why there are none if the driver's tool is there but fails."""
    command = ("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader,nounits")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_SECONDS, check=False)
    except FileNotFoundError:
        return (), ""
    except subprocess.TimeoutExpired:
        return (), f"nvidia-smi did not answer within {QUERY_SECONDS} s"
    except OSError as cause:
        return (), f"nvidia-smi cannot be run: {cause}"
    if done.returncode != 0:
        said = (done.stdout + done.stderr).strip().splitlines()
        return (), f"nvidia-smi failed: {said[0] if said else f'exit code {done.returncode}'}"
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines()]
    return tuple(
        Gpu(row[0], _mebibytes(row[1]), _mebibytes(row[2]), *row[3:]) for row in rows if len(row) == len(GPU_FIELDS)
    ), ""


def _runtime_bytes() -> int:
    for name in IMPORTED_LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    return host.peak_rss_bytes()


def cpu_name(root: Path = Path("/")) -> str:
    """As the processor calls itself, else its architecture."""
    try:
        lines = (root / "proc/cpuinfo").read_text("utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    told = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(told, "") or platform.machine()


def detect_jetson(root: Path) -> str:
    """The module's model name on a Jetson, else empty."""
    model = _first_line(root / "proc/device-tree/model").rstrip("\0")
    release = _first_line(root / "etc/nv_tegra_release")
    if release:
        return f"{model or 'Jetson'} ({release.removeprefix('# ').split(', GCID')[0]})"
    return model if "jetson" in model.lower() else ""


def _first_line(path: Path) -> str:
    try:
        return (path.read_text("utf-8", errors="replace").splitlines() or [""])[0].strip()
    except OSError:
        return ""


def _mebibytes(text: str) -> int | None:
    return int(text) << 20 if text.isdecimal() else None


def _providers() -> tuple[tuple[str, ...], str]:
    """ONNX Runtime's execution providers, or why it cannot be used."""
    try:
        from vlm_edge.backends.onnx.session import import_runtime

        return tuple(import_runtime().get_available_providers()), ""
    except VlmEdgeError as cause:
        return (), cause.message
    except ImportError as cause:
        return (), str(cause)


def _bundle_problem() -> str:
    """What is wrong with the embedded bundle, every file of which is hashed, or with what would run it."""
    try:
        importlib.import_module(_PIPELINE)
        from vlm_edge.core.bundle import open_bundle, verify_hashes
        from vlm_edge.pipeline.embedded import NANO

        verify_hashes(open_bundle(NANO), force=True)
    except VlmEdgeError as cause:
        return cause.message
    except ImportError as cause:
        return f"not checked: {cause}"
    return ""
