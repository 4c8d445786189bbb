"""The usage line of a command, as its manual page would write it."""

from __future__ import annotations

import re
from typing import Any

from typer.core import TyperCommand


class PlainUsage(TyperCommand):
    """Metavars already say how often a word may stand, so they go without the brackets that Typer puts around them."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`{IMAGE... QUESTION}...` -> `IMAGE... QUESTION`."""
        return [re.sub(r"^\{(.+)\}(?:\.\.\.)?$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]
