"""Vision-language models on one small GPU, a Jetson or a CPU.

from vlm_edge import Pipeline
print(Pipeline.load().ask("page.png", "what is the total?").text)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlm_edge.pipeline.answering.answer import Answer
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.answering.run import Pipeline

__version__ = "0.1.0"
__all__ = ["Answer", "AskOptions", "Pipeline", "__version__"]

_WHERE = {
    "Answer": "vlm_edge.pipeline.answering.answer",
    "AskOptions": "vlm_edge.pipeline.answering.options",
    "Pipeline": "vlm_edge.pipeline.answering.run",
}


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that `vlm-edge --help` needs neither NumPy nor ONNX Runtime."""
    if name in _WHERE:
        import importlib

        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
