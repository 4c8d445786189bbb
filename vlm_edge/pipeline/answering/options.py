"""What a caller may choose for one question, checked before anything is loaded."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from vlm_edge.core.bundle import RunDefaults
from vlm_edge.core.contracts import VlmFamily
from vlm_edge.core.layout import Box
from vlm_edge.core.load import OMIT_DEFAULT
from vlm_edge.core.manifest_checks import REDUCTIONS, SALIENCIES, TILINGS
from vlm_edge.errors import BadInput

CNN = "cnn"
GIVEN = "given"
"""A Look's tiling where the caller named the tiles."""
READ_BY = {
    "keep": ("random", "tome", "divprune", "cdpruner", "landmark", "downsample"),
    "threshold": ("threshold",),
    "seed": ("random",),
}
"""Which reductions read a number; for the others a Look holds 1 or seed 0, so that what they ignore makes no other look."""


@dataclass(frozen=True)
class AskOptions:
    """None means: as the bundle says.

    max_tiles: full-resolution tiles beside the global view.  saliency: by what tiles are chosen.  saliency_model: an ONNX file for
    `cnn`, which it implies; None is the bundle's own.  keep: share of each view's tokens that stays, for the reductions in
    READ_BY.  threshold: cosine above which neighbours merge.  temperature 0 is greedy.  seed: for sampling and random reduction.
    tiles: boxes (x0, y0, x1, y1) in source pixels to show beside the global view, in that order, in place of a tiling.
    stop: texts before which the answer ends; a single one may be given as it is.
    ignore_eos: go on behind the end token until max_new_tokens, so that every answer takes as many steps.
    Raises BadInput for a value outside its range or of another type.
    """

    tiling: str | None = None
    max_tiles: int | None = None
    reduce: str | None = None
    keep: float | None = None
    threshold: float | None = None
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0
    max_pixels: int | None = None
    tiles: tuple[Box, ...] | None = None
    saliency: str | None = field(default=None, metadata=OMIT_DEFAULT)
    saliency_model: str | None = field(default=None, metadata=OMIT_DEFAULT)
    ignore_eos: bool = field(default=False, metadata=OMIT_DEFAULT)

    def __post_init__(self) -> None:
        _one_of("--tiling", self.tiling, TILINGS)
        _one_of("--reduce", self.reduce, REDUCTIONS)
        _one_of("--saliency", self.saliency, SALIENCIES)
        if self.saliency_model is not None and self.saliency not in (None, CNN):
            raise BadInput(
                f"--saliency {self.saliency} reads no --saliency-model",
                remedy="use --saliency cnn, or leave the model out",
            )
        if self.chooses_tiles and self.tiling not in (None, "auto"):
            raise BadInput(
                f"--tiling {self.tiling} chooses no tiles by saliency",
                remedy="use --tiling auto, or leave --saliency out",
            )
        _at_least("--max-tiles", self.max_tiles, 0)
        _at_least("--max-new-tokens", self.max_new_tokens, 1)
        _at_least("--max-pixels", self.max_pixels, 1)
        _at_least("--seed", self.seed, 0)
        _share("--keep", self.keep)
        _share("--threshold", self.threshold)
        _share("--top-p", self.top_p)
        if not (_is_real(self.temperature) and math.isfinite(self.temperature) and self.temperature >= 0):
            raise BadInput(
                f"--temperature {self.temperature} is not allowed", remedy="use 0 for greedy, or a number above 0"
            )
        object.__setattr__(self, "stop", _texts(self.stop))
        if self.tiles is not None and (self.tiling is not None or self.max_tiles is not None or self.chooses_tiles):
            raise BadInput(
                "the tiles are given, so --tiling, --max-tiles and --saliency choose nothing", remedy="leave those out"
            )
        for box in self.tiles or ():
            _tile(box)

    @property
    def chooses_tiles(self) -> bool:
        """Whether the caller said by what saliency tiles are chosen."""
        return self.saliency is not None or self.saliency_model is not None


@dataclass(frozen=True)
class Look:
    """How an image is turned into visual tokens, with the bundle's defaults filled in: equal looks give equal tokens."""

    tiling: str
    max_tiles: int
    reduce: str
    keep: float
    threshold: float
    seed: int
    tiles: tuple[Box, ...] | None = None
    saliency: str = ""
    saliency_model: str | None = None

    @property
    def whole(self) -> bool:
        """Whether one view of the whole image is all that is shown; `grid` without tiles is the family's own preprocessing."""
        return self.max_tiles == 0 and self.tiling != "grid"

    @property
    def chooses(self) -> bool:
        """Whether tiles are chosen by saliency."""
        return self.tiling == "auto" and self.max_tiles > 0

    @staticmethod
    def of(options: AskOptions, defaults: RunDefaults, limit_tiles: int, family: VlmFamily) -> Look:
        """Raises BadInput when more tiles are asked for than the bundle was planned for, or what the family does not have.

        A family without free tiles cuts images by its own rules: then `grid` means those, and `max_tiles` how many tiles
        they may come to; `auto` means the most salient tiles of such a grid, where the family can show some without the others.
        """
        tiling = options.tiling or ("auto" if options.chooses_tiles else defaults.tiling)
        _check_family(options, tiling, family)
        if not family.free_tiles and options.max_tiles == 0:
            tiling = "none"
        tiles = limit_tiles if options.max_tiles is None else options.max_tiles
        boxes = None if options.tiles is None else tuple((x0, y0, x1, y1) for x0, y0, x1, y1 in options.tiles)
        if boxes is not None:
            tiling, tiles = (GIVEN if boxes else "none"), len(boxes)
        if tiles > limit_tiles:
            asked = f"--max-tiles {tiles}" if boxes is None else f"a question with {tiles} tiles"
            raise BadInput(f"{asked} exceeds this bundle's limit", remedy=_fewer_tiles(limit_tiles, family))
        if family.free_tiles and not limit_tiles and options.max_tiles is None and _asks_for_tiles(options):
            raise BadInput(
                "this bundle was planned for no tiles beside the whole image, so there are none to choose",
                remedy=_fewer_tiles(0, family),
            )
        reduce = options.reduce or defaults.reduce
        _check_reduction(reduce, family)
        keep = defaults.keep if options.keep is None else options.keep
        threshold = defaults.threshold if options.threshold is None else options.threshold
        saliency = options.saliency or (CNN if options.saliency_model is not None else defaults.saliency)
        salient = tiling == "auto" and tiles > 0
        return Look(
            tiling=tiling,
            max_tiles=0 if tiling == "none" else tiles,
            reduce=reduce,
            keep=keep if reduce in READ_BY["keep"] else 1.0,
            threshold=threshold if reduce in READ_BY["threshold"] else 1.0,
            seed=options.seed if reduce in READ_BY["seed"] else 0,
            tiles=boxes,
            saliency=saliency if salient else "",
            saliency_model=options.saliency_model if salient and saliency == CNN else None,
        )


def _asks_for_tiles(options: AskOptions) -> bool:
    return options.tiling == "auto" or options.chooses_tiles


def _fewer_tiles(limit: int, family: VlmFamily) -> str:
    """What to do about more tiles than a bundle's limit."""
    if limit:
        return f"use {limit} tile{'s' * (limit > 1)} or fewer"
    if family.free_tiles:
        return "use --tiling none, or let vlm-edge build MODEL OUT --recipe FILE plan the bundle for tiles (limits.max_tiles)"
    return "leave --max-tiles out: this bundle has no tiles beside the whole image"


def allowed_reductions(family: VlmFamily) -> tuple[str, ...]:
    """What --reduce may be for a family: all of them work on the tokens behind the projector."""
    free = family.reducible and "after_projector" in family.merge_sites
    return REDUCTIONS if free else ("none",)


def _check_reduction(reduce: str, family: VlmFamily) -> None:
    allowed = allowed_reductions(family)
    if reduce not in allowed:
        raise BadInput(
            f"the visual tokens of {family.name} have a fixed number and order in the prompt, which --reduce {reduce} would break",
            remedy=f"use --reduce {' or '.join(allowed)}, which is all that this family allows",
        )


def _check_family(options: AskOptions, tiling: str, family: VlmFamily) -> None:
    if family.free_tiles:
        return
    if options.tiles is not None:
        raise BadInput(
            f"models of the family {family.name} cut images by rules of their own; tiles cannot be given",
            remedy="use --tiling grid for those, or --tiling none",
        )
    if family.chosen_tiles:
        return
    if options.chooses_tiles:
        raise BadInput(
            f"--saliency chooses tiles, and models of the family {family.name} cut images by rules of their own",
            remedy="leave --saliency out",
        )
    if tiling == "auto":
        raise BadInput(
            f"--tiling auto is not offered for the family {family.name}, which cuts images by rules of its own",
            remedy="use --tiling grid for those, or --tiling none for the whole image in one view",
        )


def _one_of(option: str, value: str | None, allowed: tuple[str, ...]) -> None:
    if value is not None and value not in allowed:
        nearest = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"use one of: {', '.join(allowed)}"
        raise BadInput(f"{option} has no value {value!r}", remedy=hint)


def _is_real(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _at_least(option: str, value: int | None, least: int) -> None:
    if value is None:
        return
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise BadInput(f"{option} {value!r} is no whole number", remedy=f"use a whole number of {least} or more")
    if value < least:
        raise BadInput(f"{option} {value} is not allowed", remedy=f"use {least} or more")


def _texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Stop strings, of which one may stand for itself: a text is a sequence too, and its letters are never meant."""
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Iterable) else (stop,)
    for text in texts:
        if not isinstance(text, str):
            raise BadInput(f"--stop {text!r} is no text", remedy="give the text at which to stop")
        if not text:
            raise BadInput("--stop is empty", remedy="give the text at which to stop")
    return texts


def _tile(box: Box) -> None:
    whole = isinstance(box, tuple | list) and len(box) == 4 and all(type(value) is int for value in box)
    if not whole or not (0 <= box[0] < box[2] and 0 <= box[1] < box[3]):
        raise BadInput(f"tile {box} is not allowed", remedy="give whole pixels x0, y0, x1, y1 with x0 < x1 and y0 < y1")


def _share(option: str, value: float | None) -> None:
    if value is not None and not (_is_real(value) and 0 < value <= 1):
        raise BadInput(f"{option} {value} is not allowed", remedy="use a number above 0 and at most 1")
