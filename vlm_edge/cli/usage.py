"""The usage line of a command, as its manual page would write it."""

from __future__ import annotations

import re
from typing import Any

import typer
from typer.core import TyperCommand

from vlm_edge.cli import render


def command_group(name: str, about: str) -> typer.Typer:
    """A command that has commands of its own; without one it shows its help, as the program itself does."""
    group = typer.Typer(name=name, help=about, rich_markup_mode=None, invoke_without_command=True)

    @group.callback()
    def show_help(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            render.emit(context.get_help(), end="\n")

    return group


class PlainUsage(TyperCommand):
    """Metavars already say how often a word may stand, so they go without the brackets that Typer puts around them."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """`{IMAGE... QUESTION}...` -> `IMAGE... QUESTION`."""
        return [re.sub(r"^\{(.+)\}(?:\.\.\.)?$", r"\1", piece) for piece in super().collect_usage_pieces(ctx)]
