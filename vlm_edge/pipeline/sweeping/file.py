"""What a sweep compares: a YAML file of blocks, each the product of its lists -> points, checked before anything is asked."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from vlm_edge.core import discover
from vlm_edge.core.bundle import Bundle
from vlm_edge.core.load import load_file
from vlm_edge.core.resources import nearest
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import READ_BY, AskOptions, Look
from vlm_edge.pipeline.answering.preflight import find_bundle
from vlm_edge.pipeline.embedded import EMBEDDED

_STRICT = {"extra": "forbid"}
BASELINES = ("random", "downsample")
"""Reductions that every other has to beat."""
MOST_POINTS = 1000
GROUNDS = ("interval", "estimate")
_WITH_TILES = ("auto", "grid")


@dataclass(frozen=True)
class Block:
    """Every combination of the lists; an empty one leaves the bundle's default, or what the command line says.

    name: before the points' labels.  bundles: names of the file's `bundles`; none means all.  own_tiles: each row's own tiles,
    in place of a tiling.
    """

    tiling: tuple[str, ...] = ()
    max_tiles: tuple[int, ...] = ()
    saliency: tuple[str, ...] = ()
    reduce: tuple[str, ...] = ()
    keep: tuple[float, ...] = ()
    threshold: tuple[float, ...] = ()
    seed: tuple[int, ...] = ()
    bundles: tuple[str, ...] = ()
    own_tiles: bool = False
    name: str = ""
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Rule:
    """The winner has the fewest visual tokens of all points that lose at most within_points of accuracy, in percentage points.

    The loss is held against the most accurate point, over the same rows.  by: `interval`, the far end of the paired 95% interval
    must keep the limit, so that few rows prove little; `estimate`, the measured loss alone.
    """

    within_points: float = 1.0
    by: str = "interval"
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class SweepFile:
    """bundles: name -> folder, relative to the file.  tasks: rows that are asked; none means all."""

    points: tuple[Block, ...] = ()
    bundles: dict[str, str] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    winner: Rule = field(default_factory=Rule)
    __pydantic_config__: ClassVar[dict[str, str]] = _STRICT


@dataclass(frozen=True)
class Point:
    """One way of asking. bundle: its name; look: what the options come to for that bundle; own_tiles: each row's own."""

    label: str
    bundle: str
    options: AskOptions
    look: Look
    own_tiles: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether it is there to be beaten: tokens at random or downsampled, tiles in grid order, the global view alone."""
        return self.look.reduce in BASELINES or (not self.own_tiles and self.look.tiling in ("none", "grid"))


def load_sweep(path: Path) -> SweepFile:
    """Raises BadInput with file and field named."""
    sweep = load_file(path, SweepFile)
    if not sweep.points:
        raise BadInput(f"{path}: points is empty", remedy="give one block at least, such as {reduce: [none, tome]}")
    rule = sweep.winner
    if not 0 <= rule.within_points <= 100:
        raise BadInput(f"{path}: winner.within_points is {rule.within_points}", remedy="use 0 to 100 percentage points")
    if rule.by not in GROUNDS:
        raise BadInput(f"{path}: winner.by has no value {rule.by!r}", remedy=nearest(rule.by, list(GROUNDS)))
    for number, block in enumerate(sweep.points):
        _check(block, f"{path}: points.{number}")
    return sweep


def open_bundles(sweep: SweepFile, path: Path, named: str | None) -> dict[str, Bundle]:
    """Bundles by name: the one that the command line names, under its own name, and the file's.

    Without either the embedded one.  Raises BadInput where one name stands for two, DamagedBundle.
    """
    found: dict[str, Bundle] = {}
    if named is not None or not sweep.bundles:
        bundle = find_bundle(named)
        found[bundle.manifest.name] = bundle
    for name, folder in sweep.bundles.items():
        if name in found:
            raise BadInput(f"{path}: bundles.{name} has the name of the command's own bundle", remedy="rename it there")
        found[name] = find_bundle(folder if folder == EMBEDDED else path.parent / folder)
    return found


def points_of(sweep: SweepFile, path: Path, bundles: Mapping[str, Bundle], base: AskOptions) -> tuple[Point, ...]:
    """Every point of every block for its bundles, those that come to the same once.

    base: options of all points.  Raises BadInput with the block named for a value out of range, one that nothing reads, and what
    a bundle's family or limits forbid.
    """
    points: dict[tuple[str, Look, bool], Point] = {}
    for number, block in enumerate(sweep.points):
        where = f"{path}: points.{number}"
        for name in block.bundles:
            if name not in bundles:
                raise BadInput(f"{where}: no bundle is called {name!r}", remedy=nearest(name, list(bundles)))
        for name in block.bundles or bundles:
            for options in _combinations(block, base, where):
                try:
                    point = _point(block, name, bundles, options)
                except BadInput as cause:
                    raise BadInput(f"{where}: {cause.message}", remedy=cause.remedy) from cause
                points.setdefault((name, point.look, block.own_tiles), point)
        if len(points) > MOST_POINTS:
            raise BadInput(f"{path} comes to over {MOST_POINTS} points", remedy="shorten its lists")
    return tuple(points.values())


def _point(block: Block, name: str, bundles: Mapping[str, Bundle], options: AskOptions) -> Point:
    manifest = bundles[name].manifest
    family = discover.family(manifest.model.family)
    look = Look.of(options, manifest.defaults, manifest.limits.max_tiles, family)
    parts = ["each row's own tiles" if block.own_tiles else tiling_label(look), reduction_label(look)]
    parts += [name] if len(bundles) > 1 else []
    label = ", ".join(parts)
    return Point(f"{block.name}: {label}" if block.name else label, name, options, look, block.own_tiles)


def tiling_label(look: Look) -> str:
    """What is shown of an image, in words."""
    if look.whole:
        return "global view only"
    tiles = f"{look.max_tiles} tile{'s' * (look.max_tiles != 1)}"
    if look.tiling == "grid":
        return f"grid order, {tiles}"
    return f"salient, {tiles}" + (f" by {look.saliency}" if look.saliency != "detail" else "")


def reduction_label(look: Look) -> str:
    """What becomes of the tokens, in words."""
    numbers = [f"{getattr(look, name):g}" for name in ("threshold", "keep") if look.reduce in READ_BY[name]]
    seed = f"seed {look.seed}" if look.seed else ""
    return " ".join(part for part in ("every token" if look.reduce == "none" else look.reduce, *numbers, seed) if part)


def _combinations(block: Block, base: AskOptions, where: str) -> Iterator[AskOptions]:
    axes = ("tiling", "max_tiles", "saliency", "reduce", "keep", "threshold", "seed")
    given = {name: getattr(block, name) for name in axes if getattr(block, name)}
    for values in itertools.product(*given.values()):
        chosen = dict(zip(given, values, strict=True))
        if chosen.get("saliency") is not None and chosen.get("tiling", "auto") != "auto":
            del chosen["saliency"]  # it says how `auto` chooses; the block's other tilings have no use for it
        try:
            yield replace(base, **chosen, tiles=() if block.own_tiles else None)
        except BadInput as cause:
            raise BadInput(f"{where}: {cause.message}", remedy=cause.remedy) from cause


def _check(block: Block, where: str) -> None:
    """Raise BadInput for values that no point of the block reads: they would look as if they had been swept."""
    if block.own_tiles and (block.tiling or block.max_tiles or block.saliency):
        raise BadInput(
            f"{where}: own_tiles leaves tiling, max_tiles and saliency nothing to choose", remedy="drop those"
        )
    for name, readers in READ_BY.items():
        if getattr(block, name) and block.reduce and not {*block.reduce} & {*readers}:
            raise BadInput(f"{where}: none of reduce reads {name}", remedy=f"drop it; {_either(readers)} would")
    if block.max_tiles and block.tiling and not {*block.tiling} & {*_WITH_TILES}:
        raise BadInput(f"{where}: none of tiling reads max_tiles", remedy=f"drop it; {_either(_WITH_TILES)} would")
    if block.saliency and block.tiling and "auto" not in block.tiling:
        raise BadInput(f"{where}: none of tiling reads saliency", remedy="drop it; auto would")


def _either(names: Sequence[str]) -> str:
    return " or ".join(names)
