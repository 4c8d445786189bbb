"""The packages of the `build` extra: which there are, and the error where one is missing."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from importlib import metadata

from vlm_edge import __version__
from vlm_edge.errors import MissingDependency

BUILD_TOOLS = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


def require_build_tools(what: str, tools: Sequence[str] = BUILD_TOOLS) -> None:
    """Raise MissingDependency, saying that `what` needs them, unless all of these tools are installed."""
    missing = [name for name in tools if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(
            f"{what} needs {', '.join(missing)}, which is not installed", remedy="pip install 'vlm-edge[cpu,build]'"
        )


def tool_versions() -> dict[str, str]:
    """Our version and those of the BUILD_TOOLS, for a manifest.

    onnxruntime-gpu gives the module onnxruntime without a distribution of that name.
    """
    found = {"vlm-edge": __version__}
    for name in BUILD_TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
