"""Opening ONNX Runtime sessions, and the two ways in which an installation of it goes wrong."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from vlm_edge.errors import BadInput, DamagedBundle, MissingDependency

VARIANTS = ("onnxruntime", "onnxruntime-gpu")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
LOG_ERRORS_ONLY = 3


def installed_variants() -> dict[str, str]:
    """Names and versions of the ONNX Runtime distributions that are installed."""
    found = {}
    for name in VARIANTS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def import_runtime() -> Any:
    """The onnxruntime module; raises MissingDependency when none or both variants are installed."""
    found = installed_variants()
    if len(found) > 1:
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            remedy="pip uninstall -y onnxruntime onnxruntime-gpu, then pip install 'vlm-edge[cpu]' or 'vlm-edge[gpu]'",
        )
    try:
        import onnxruntime
    except ImportError as cause:
        raise MissingDependency(
            "ONNX Runtime is not installed" if not found else f"ONNX Runtime cannot be imported: {cause}",
            remedy="pip install 'vlm-edge[cpu]', or 'vlm-edge[gpu]' for a CUDA device",
        ) from cause
    return onnxruntime


def available_targets() -> tuple[str, ...]:
    """`cpu`, and `cuda` where ONNX Runtime was built with it."""
    providers = import_runtime().get_available_providers()
    return tuple(target for target, provider in PROVIDERS.items() if provider in providers)


def open_session(graph: Path, *, target: str, threads: int) -> Any:
    """An InferenceSession on one target; raises BadInput, MissingDependency or, for a bad graph, DamagedBundle."""
    runtime = import_runtime()
    if target not in available_targets():
        raise BadInput(f"ONNX Runtime here has no {target}", remedy="use --device cpu, or pip install 'vlm-edge[gpu]'")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = LOG_ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if target == "cuda" else "1")
    try:
        session = runtime.InferenceSession(str(graph), options, providers=[PROVIDERS[target]])
    except Exception as cause:  # ONNX Runtime's exceptions share no public base class
        why = f"{graph} cannot be loaded: {first_line(cause)}"
        raise DamagedBundle(why, remedy="export the model again") from cause
    if PROVIDERS[target] not in session.get_providers():
        # ONNX Runtime goes on with the CPU where a provider's own libraries are missing.
        raise MissingDependency(
            f"ONNX Runtime could not start {PROVIDERS[target]}",
            remedy="install the CUDA and cuDNN that this onnxruntime-gpu was built for, or use --device cpu",
        )
    return session


def first_line(error: BaseException) -> str:
    """An error's first line, for messages of two lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
