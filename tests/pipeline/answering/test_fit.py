"""Fewer tiles where that is enough, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.pictures import photo
from vlm_edge.core.bundle import Bundle
from vlm_edge.errors import BadInput, DoesNotFit
from vlm_edge.memory.phases import Plan
from vlm_edge.pipeline.answering.fit import fit_tiles
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import preflight
from vlm_edge.pipeline.answering.question_plan import plan, source_header

WIDE = photo(90, 61)


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


def test_all_tiles_or_none_where_a_family_cuts_by_its_own_rules() -> None:
    for budget, tiles in ((159, 0), (100, 0)):
        fitted = fit_tiles(AskOptions(), 6, planned(budget), any_number=False)  # type: ignore[arg-type]
        assert (fitted.options.max_tiles, fitted.asked_tiles, fitted.plan.fits) == (tiles, 6, True)
    fitted = fit_tiles(AskOptions(), 0, planned(50, most=0), any_number=False)  # type: ignore[arg-type]
    assert (fitted.options, fitted.plan.fits) == (AskOptions(), False)


def made(family: str, folder: Path) -> Bundle:
    pytest.importorskip("torch")
    from tests import runnable

    return runnable.make(family, folder).bundle


def peak(bundle: Bundle, options: AskOptions) -> int:
    return plan(bundle, options, images=(source_header(WIDE, 1 << 30),), budget_bytes=1 << 40).peak_bytes


def test_a_familys_own_tiles_give_way_to_one_view(tmp_path: Path) -> None:
    """InternVL: four tiles and a thumbnail of this image, or one view of it; nothing between."""
    bundle = made("internvl", tmp_path)
    whole = peak(bundle, AskOptions(tiling="none"))
    assert whole < peak(bundle, AskOptions())
    fitted = preflight(bundle, [WIDE], AskOptions(), str(whole))
    tiles = bundle.manifest.model.geometry.layout((90, 61)).views - 1
    assert tiles > 1
    assert (fitted.asked_tiles, fitted.options, fitted.plan.peak_bytes) == (tiles, AskOptions(max_tiles=0), whole)
    with pytest.raises(DoesNotFit, match="internvl cuts images by rules of its own"):
        preflight(bundle, [WIDE], AskOptions(), str(whole - 1))
    with pytest.raises(BadInput, match="is cut into"):  # what was asked for is refused, not lowered
        preflight(bundle, [WIDE], AskOptions(max_tiles=1), str(whole))
    assert preflight(bundle, [WIDE], AskOptions(), "8GiB").asked_tiles is None


@pytest.mark.parametrize("family", ["qwen2_vl", "paligemma"])
def test_where_there_are_no_tiles_none_can_be_left_out(family: str, tmp_path: Path) -> None:
    bundle = made(family, tmp_path)
    needed = peak(bundle, AskOptions())
    assert preflight(bundle, [WIDE], AskOptions(), str(needed)).asked_tiles is None
    with pytest.raises(DoesNotFit, match=f"{family} shows these images in one view each, so there are no tiles"):
        preflight(bundle, [WIDE], AskOptions(), str(needed - 1))
