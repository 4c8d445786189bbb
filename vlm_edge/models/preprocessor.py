"""Reading preprocessor_config.json and config.json: strict about types and ranges, and every complaint names the field."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vlm_edge.core.geometry import Size, TokenGeometry
from vlm_edge.errors import BadInput
from vlm_edge.vision.resize import FILTERS, Normalisation

G = TypeVar("G", bound=TokenGeometry)
Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)
MAX_EDGE_PX = 1 << 16
MAX_NUMBER = 1e9
MIN_STD = 1e-6
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
"""Pillow's numbers of the filters that checkpoints use."""


@dataclass(frozen=True)
class ViewSettings(Generic[G]):
    """How a family prepares an image: its geometry, Pillow's number of the filter, and the pixels' scale."""

    geometry: G
    resample: int
    pixels: Normalisation


class Fields:
    """A JSON object's fields. null counts as absent, as it does for transformers; a wrong type or range is BadInput."""

    def __init__(self, values: Mapping[str, Any], name: str) -> None:
        self._values = values
        self._name = name

    def fail(self, key: str, why: str) -> BadInput:
        """The error for a field, to be raised."""
        return BadInput(
            f"{self._name}: {key} {why}", remedy="correct the field, or take the file of the original model"
        )

    def get(self, key: str, default: Any = None) -> Any:
        """The raw value, or `default` where the field is absent or null."""
        value = self._values.get(key)
        return default if value is None else value

    def with_value(self, key: str, value: Any) -> Fields:
        """The same object with one field set to something else."""
        return Fields({**self._values, key: value}, self._name)

    def inner(self, key: str) -> Fields:
        """An object inside; an empty one where it is absent."""
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise self.fail(key, f"is no object: {value!r}")
        return Fields(value, f"{self._name}: {key}")

    def count(self, key: str, default: int | None = None, *, least: int = 1, most: int = MAX_EDGE_PX) -> int:
        """A whole number in least..most."""
        value = self.get(key, default)
        if value is None:
            raise self.fail(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.fail(key, f"is no whole number from {least} to {most}: {value!r}")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.fail(key, f"is neither true nor false: {value!r}")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number of at most nine digits before the point."""
        return self._finite(key, self.get(key, default))

    def triple(self, key: str, default: Triple) -> Triple:
        """Three finite numbers, or one that stands for all three."""
        value = self.get(key, default)
        values = list(value) if isinstance(value, list | tuple) else [value] * 3
        if len(values) != 3:
            raise self.fail(key, f"has {len(values)} values, not one for each of red, green and blue")
        red, green, blue = (self._finite(key, each) for each in values)
        return red, green, blue

    def _finite(self, key: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
            raise self.fail(key, f"is no finite number: {value!r:.40}")
        return float(value)

    def square(self, key: str, default: int) -> int:
        """Side of a square: a whole number, or two equal ones in a list."""
        value = self.get(key, default)
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return self.with_value(key, value).count(key)

    def sizes(self, key: str, default: Mapping[str, int], *, number_means: Collection[str]) -> dict[str, int]:
        """A size such as {"height": 336, "width": 336} or {"shortest_edge": 336}; a bare number sets `number_means`."""
        value = self.get(key, default)
        if isinstance(value, int):
            value = dict.fromkeys(number_means, value)
        if isinstance(value, list | tuple) and len(value) == 2:
            value = {"height": value[0], "width": value[1]}
        if not isinstance(value, Mapping):
            raise self.fail(key, f"is no size: {value!r}")
        inner = Fields(value, f"{self._name}: {key}")
        return {str(name): inner.count(str(name), most=1 << 40) for name in value if value[name] is not None}


def preprocessor_fields(
    preprocessor: Mapping[str, Any], *, types: Collection[str], steps: Collection[str] = ()
) -> Fields:
    """preprocessor_config.json, once it is known to describe a processor of these types and no step but `steps`.

    Every family resizes, rescales, normalises and converts to RGB; `steps` are the `do_...` fields it knows besides.
    Raises BadInput for another type of processor, another step that is switched on, or resizing switched off.
    """
    fields = Fields(preprocessor, "preprocessor_config.json")
    name = processor_type(fields, types)
    if name not in types:
        raise fields.fail("image_processor_type", f"is {name!r}, not one of {', '.join(sorted(types))}")
    if not fields.flag("do_resize", True):
        raise fields.fail("do_resize", "is off, but the encoder takes only the sizes that resizing gives")
    known = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb", *steps}
    for step in sorted(key for key in preprocessor if key.startswith("do_") and key not in known):
        if fields.flag(step, False):
            raise fields.fail(step, "asks for a step that this family does not have")
    return fields


def processor_type(fields: Fields, types: Collection[str]) -> str:
    """The class of the image processor, without the suffix of its back end; the first of `types` where none is named."""
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type")
    if named is None:
        return next(iter(types))
    return str(named).removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")


def resample_field(fields: Fields, default: int) -> int:
    """Pillow's number of a filter that weighs neighbours (nearest, 0, is none)."""
    value = fields.get("resample", default)
    if isinstance(value, bool) or not isinstance(value, int) or value not in FILTERS:
        raise fields.fail("resample", f"is none of Pillow's filters {sorted(FILTERS)}: {value!r}")
    return value


def normalisation(fields: Fields, mean: Triple, std: Triple) -> Normalisation:
    """Rescaling and normalising, each of which a checkpoint may switch off; `mean` and `std` are the family's own."""
    factor = fields.number("rescale_factor", 1 / 255)
    if factor <= 0:
        raise fields.fail("rescale_factor", f"is not positive: {factor!r}")
    means, deviations = fields.triple("image_mean", mean), fields.triple("image_std", std)
    if min(deviations) < MIN_STD:
        raise fields.fail("image_std", f"has a value that is not positive: {list(deviations)!r}")
    scale = factor if fields.flag("do_rescale", True) else 1.0
    return Normalisation(scale, means, deviations) if fields.flag("do_normalize", True) else Normalisation(scale)


def square_size(fields: Fields, key: str, default: int) -> int:
    """Side of a size that must be square, given as height and width, or as the shortest edge of what becomes one."""
    sizes = fields.sizes(key, {"height": default, "width": default}, number_means=("height", "width"))
    sides = set(sizes.values())
    if set(sizes) not in ({"height", "width"}, {"shortest_edge"}) or len(sides) != 1 or max(sides) > MAX_EDGE_PX:
        raise fields.fail(key, f"is no square: {sizes!r}")
    return sides.pop()


def patch_grid(vision: Fields, view_px: int, *, patch_px: int) -> int:
    """Patches along a view's side; what is left of a patch at the edge is not seen.  Raises BadInput if none fits."""
    if patch_px > view_px:
        raise vision.fail("patch_size", f"of {patch_px} px is larger than a view of {view_px} px")
    return view_px // patch_px


def same_view(fields: Fields, key: str, view_px: int, vision: Fields, default: int) -> None:
    """Raises BadInput unless the preprocessor's view is the one that the encoder was built for."""
    encoder = vision.square("image_size", default)
    if encoder != view_px:
        raise fields.fail(key, f"gives views of {view_px} px, but config.json's image_size is {encoder}")


def shuffled_grid(vision: Fields, side: int, factor: int, *, name: str) -> tuple[int, int]:
    """The token grid after factor x factor patches became one; raises BadInput where that does not divide."""
    if side % factor:
        raise vision.fail(name, f"of {factor} does not divide {side} patches along a side")
    return side // factor, side // factor


def size_pairs(fields: Fields, key: str, value: Any) -> tuple[Size, ...]:
    """A list of [height, width] -> (width, height) each; raises BadInput for an empty list or anything else."""
    if not isinstance(value, list | tuple) or not value:
        raise fields.fail(key, f"is no list of sizes: {value!r}")
    pairs: list[Size] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise fields.fail(key, f"has an entry that is no [height, width]: {pair!r}")
        height, width = (fields.with_value(key, side).count(key) for side in pair)
        pairs.append((width, height))
    return tuple(pairs)
