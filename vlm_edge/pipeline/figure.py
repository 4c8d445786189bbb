"""Figures of reports as PNG, drawn with matplotlib, which the `report` extra brings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from vlm_edge.errors import MissingDependency
from vlm_edge.pipeline.written import written


def require_matplotlib(what: str) -> None:
    """Raise MissingDependency, saying that `what` needs it, unless matplotlib is installed: before hours go into what is drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise _missing(what)


def new_figure(width_in: float, height_in: float, *, what: str) -> Any:
    """An empty matplotlib Figure that no window shows; raises MissingDependency, saying that `what` needs matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise _missing(what) from cause
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Any, path: Path, *, dpi: int = 120) -> None:
    """Write the PNG, whole or not at all; raises BadInput where it cannot be written."""
    with written(path) as stream:
        figure.savefig(stream, format="png", dpi=dpi)


def _missing(what: str) -> MissingDependency:
    return MissingDependency(f"{what} needs matplotlib", remedy="pip install 'vlm-edge[report]'")
