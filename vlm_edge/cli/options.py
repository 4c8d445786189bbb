"""Options that several commands take, declared once."""

from __future__ import annotations

from typing import Annotated

import typer

Tiling = Annotated[
    str | None, typer.Option(help="auto (salient tiles), grid, or none (global view only).", show_default=False)
]
MaxTiles = Annotated[int | None, typer.Option(help="Full-resolution tiles beside the global view.", show_default=False)]
Reduce = Annotated[
    str | None, typer.Option(help="Visual tokens: none, threshold, random or downsample.", show_default=False)
]
Keep = Annotated[
    float | None, typer.Option(help="Share of tokens that random and downsample keep.", show_default=False)
]
Threshold = Annotated[
    float | None, typer.Option(help="Cosine above which neighbouring tokens merge.", show_default=False)
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.", show_default=False)]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per real core.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
