"""The `tensorrt` module and its log.

Everything in this folder is written to the documented Python API of TensorRT 10 and 11 and to NVIDIA's published
bindings. No TensorRT was at hand: the calls were tested against a stand-in that refuses what the bindings do not have.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from vlm_edge.errors import BadInput, MissingDependency

OLDEST_MAJOR = 10
"""Strong typing, 64-bit shapes and the calls by tensor name are all there from this version on."""
_INSTALL = (
    "pip install 'vlm-edge[tensorrt]'; on a Jetson it comes with JetPack: sudo apt install nvidia-jetpack, "
    "and make the environment with --system-site-packages"
)


def import_tensorrt() -> Any:
    """The tensorrt module; raises MissingDependency when it is absent, cannot be loaded or is older than version 10."""
    try:
        tensorrt = importlib.import_module("tensorrt")
    except (ImportError, OSError) as cause:
        absent = isinstance(cause, ModuleNotFoundError) and cause.name == "tensorrt"
        why = "TensorRT is not installed" if absent else f"TensorRT cannot be imported: {cause}"
        raise MissingDependency(why, remedy=_INSTALL) from cause
    # A folder of that name on the path imports as well, and has no version.
    version = str(getattr(tensorrt, "__version__", "without a version"))
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < OLDEST_MAJOR:
        raise MissingDependency(f"TensorRT {version} is too old; {OLDEST_MAJOR} or newer is needed", remedy=_INSTALL)
    return tensorrt


@cache
def open_log(tensorrt: Any) -> Any:
    """An ILogger with `errors: list[str]`, which keeps what TensorRT reports as errors.

    TensorRT returns None where it fails and says why in its log only. There is one log in a process, because TensorRT
    keeps to the first that it is given; clear `errors` before an operation.
    """

    class Log(tensorrt.ILogger):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            # The bindings need this very call; super().__init__() alone does not construct their part.
            tensorrt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, msg: str) -> None:
            severities = tensorrt.ILogger.Severity
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self.errors.append(msg.strip())

    return Log()


def failure(log: Any, what: str) -> BadInput:
    """The error for a call that returned nothing: `what` failed, the first logged reason, and what may help."""
    reason = next(iter(log.errors), "TensorRT gave no reason")
    remedy = next((advice for sign, advice in _REMEDIES if sign in reason.lower()), _OTHERWISE)
    return BadInput(f"{what}: {reason.splitlines()[0]}", remedy=remedy)


_LESS_MEMORY = "close what else uses the GPU, or allow fewer tiles (--max-tiles)"
_MORE_WORKSPACE = "run the script of --emit-script with a larger workspace in --memPoolSize; its engine is taken over"
_REBUILD = "build the engine again on this machine: vlm-edge export MODEL OUT --backend tensorrt"
_REMEDIES = (
    ("out of memory", _LESS_MEMORY),
    ("outofmemory", _LESS_MEMORY),
    ("could not be allocated", _LESS_MEMORY),
    ("could not find any implementation", _MORE_WORKSPACE),
    ("insufficient workspace", _MORE_WORKSPACE),
    ("version tag", _REBUILD),
    ("not compatible", _REBUILD),
    ("incompatible device", _REBUILD),
)
"""What a message of TensorRT's contains -> what to do."""
_OTHERWISE = "run the script of --emit-script with trtexec's --verbose added, and look at the first error"
