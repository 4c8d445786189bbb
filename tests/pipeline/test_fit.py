"""Fewer tiles where that is enough, and nothing else."""

from __future__ import annotations

from vlm_edge.memory.phases import Plan
from vlm_edge.pipeline.fit import fit_tiles
from vlm_edge.pipeline.options import AskOptions


def planned(budget: int, *, most: int = 6) -> object:
    """A plan of 100 bytes and 10 for each tile; None means all of them."""

    def plan(options: AskOptions) -> Plan:
        tiles = most if options.max_tiles is None else options.max_tiles
        return Plan((), {"encode": 100 + 10 * tiles}, budget, 0)

    return plan


def test_what_fits_stays_as_it_is() -> None:
    fitted = fit_tiles(AskOptions(), 6, planned(160))  # type: ignore[arg-type]
    assert (fitted.options, fitted.asked_tiles) == (AskOptions(), None)


def test_as_many_tiles_as_fit() -> None:
    for budget, tiles in ((159, 5), (150, 5), (149, 4), (100, 0)):
        fitted = fit_tiles(AskOptions(seed=3), 6, planned(budget))  # type: ignore[arg-type]
        assert fitted.options == AskOptions(seed=3, max_tiles=tiles)
        assert (fitted.asked_tiles, fitted.plan.fits) == (6, True)


def test_where_no_number_of_tiles_is_enough_the_first_plan_is_told() -> None:
    fitted = fit_tiles(AskOptions(), 6, planned(99))  # type: ignore[arg-type]
    assert (fitted.plan.fits, fitted.plan.peak_bytes, fitted.asked_tiles) == (False, 160, None)


def test_tiles_that_the_caller_named_are_not_dropped() -> None:
    named = AskOptions(tiles=((0, 0, 5, 5),))
    fitted = fit_tiles(named, 1, planned(50))  # type: ignore[arg-type]
    assert (fitted.options, fitted.plan.fits) == (named, False)
