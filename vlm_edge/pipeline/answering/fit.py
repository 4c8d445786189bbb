"""Options that keep a question within a budget: fewer tiles, where that is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from vlm_edge.memory.phases import Plan
from vlm_edge.pipeline.answering.options import AskOptions


@dataclass(frozen=True)
class Fitted:
    """options: to ask with.  asked_tiles: the number that did not fit; None where nothing had to change."""

    options: AskOptions
    plan: Plan
    asked_tiles: int | None = None

    @property
    def note(self) -> str:
        """What was changed to keep the budget, in words; empty where nothing was."""
        if self.asked_tiles is None:
            return ""
        tiles = self.options.max_tiles
        shown = f"at most {tiles} are shown" if tiles else "the whole image is shown in one view"
        return f"{self.asked_tiles} tiles do not fit the budget: {shown}"

    def to_json(self) -> dict[str, dict[str, int | None]]:
        """The same as one more key beside an answer's; none where nothing was changed."""
        if self.asked_tiles is None:
            return {}
        return {"lowered": {"asked_tiles": self.asked_tiles, "max_tiles": self.options.max_tiles}}


def fit_tiles(
    options: AskOptions, most_tiles: int, plan: Callable[[AskOptions], Plan], *, any_number: bool = True
) -> Fitted:
    """The options as they are where they fit, else with as many tiles as do.

    most_tiles: what the options come to.  plan: of options.  any_number: whether fewer tiles may be shown than that; otherwise
    the whole image in one view is all that there is beside them. Where not even that fits, or the caller named the tiles, the
    plan returned is that of the options as they were.
    """
    asked = plan(options)
    if asked.fits or options.tiles is not None:
        return Fitted(options, asked)
    for tiles in range(most_tiles - 1, -1, -1) if any_number else range(min(most_tiles, 1)):
        fewer = replace(options, max_tiles=tiles)
        planned = plan(fewer)
        if planned.fits:
            return Fitted(fewer, planned, most_tiles)
    return Fitted(options, asked)
