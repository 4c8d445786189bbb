"""What families read from preprocessor_config.json, strict about types and ranges: sizes, colours, the filter, the steps."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from vlm_edge.core.geometry import Size, TokenGeometry
from vlm_edge.models.fields import MAX_COUNT, Fields
from vlm_edge.vision.normalisation import FILTERS, Normalisation

G = TypeVar("G", bound=TokenGeometry)
Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
HALF: Triple = (0.5, 0.5, 0.5)
MIN_STD = 1e-6
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3
"""Pillow's numbers of the filters that checkpoints use."""


@dataclass(frozen=True)
class ViewSettings(Generic[G]):
    """How a family prepares an image: its geometry, Pillow's number of the filter, and the pixels' scale."""

    geometry: G
    resample: int
    pixels: Normalisation


def preprocessor_fields(
    preprocessor: Mapping[str, Any], *, types: Collection[str], steps: Collection[str] = ()
) -> Fields:
    """preprocessor_config.json, once it is known to describe a processor of these types and no step but `steps`.

    Every family resizes, rescales, normalises and converts to RGB; `steps` are the `do_...` fields it knows besides.
    Raises BadInput for another type of processor, another step that is switched on, or resizing switched off.
    """
    fields = Fields(preprocessor, file="preprocessor_config.json")
    name = processor_type(fields, types)
    if name not in types:
        raise fields.error("image_processor_type", f"is {name!r}, not one of {', '.join(sorted(types))}")
    if not fields.flag("do_resize", True):
        raise fields.error("do_resize", "is off, but the encoder takes only the sizes that resizing gives")
    known = {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb", *steps}
    for step in sorted(key for key in preprocessor if key.startswith("do_") and key not in known):
        if fields.flag(step, False):
            raise fields.error(step, "asks for a step that this family does not have")
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
        raise fields.error("resample", f"is none of Pillow's filters {sorted(FILTERS)}: {value!r}")
    return value


def normalisation(fields: Fields, mean: Triple, std: Triple) -> Normalisation:
    """Rescaling and normalising, each of which a checkpoint may switch off; `mean` and `std` are the family's own."""
    factor = fields.number("rescale_factor", 1 / 255)
    if factor <= 0:
        raise fields.error("rescale_factor", f"is not positive: {factor!r}")
    means, deviations = triple(fields, "image_mean", mean), triple(fields, "image_std", std)
    if min(deviations) < MIN_STD:
        raise fields.error("image_std", f"has a value that is not positive: {list(deviations)!r}")
    scale = factor if fields.flag("do_rescale", True) else 1.0
    return Normalisation(scale, means, deviations) if fields.flag("do_normalize", True) else Normalisation(scale)


def triple(fields: Fields, key: str, default: Triple) -> Triple:
    """Three finite numbers, or one that stands for all three."""
    value = fields.get(key, default)
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) != 3:
        raise fields.error(key, f"has {len(values)} values, not one for each of red, green and blue")
    red, green, blue = (fields.with_value(key, each).number(key) for each in values)
    return red, green, blue


def size_edges(
    fields: Fields, key: str, default: Mapping[str, int], *, number_means: Collection[str]
) -> dict[str, int]:
    """A size such as {"height": 336, "width": 336} or {"shortest_edge": 336}; a bare number sets `number_means`."""
    value = fields.get(key, default)
    if isinstance(value, int):
        value = dict.fromkeys(number_means, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    if not isinstance(value, Mapping):
        raise fields.error(key, f"is no size: {value!r}")
    edges = fields.with_value(key, value).part(key)
    return {name: edges.count(name, maximum=1 << 40) for name in value if edges.has(name)}


def square_size(fields: Fields, key: str, default: int) -> int:
    """Side of a size that must be square, given as height and width, or as the shortest edge of what becomes one."""
    sizes = size_edges(fields, key, {"height": default, "width": default}, number_means=("height", "width"))
    sides = set(sizes.values())
    if set(sizes) not in ({"height", "width"}, {"shortest_edge"}) or len(sides) != 1 or max(sides) > MAX_COUNT:
        raise fields.error(key, f"is no square: {sizes!r}")
    return sides.pop()


def same_view(fields: Fields, key: str, view_px: int, vision: Fields, default: int) -> None:
    """Raises BadInput unless the preprocessor's view is the one that the encoder was built for."""
    encoder = vision.side("image_size", default)
    if encoder != view_px:
        raise fields.error(key, f"gives views of {view_px} px, but config.json's image_size is {encoder}")


def size_pairs(fields: Fields, key: str, value: Any) -> tuple[Size, ...]:
    """A list of [height, width] -> (width, height) each; raises BadInput for an empty list or anything else."""
    if not isinstance(value, list | tuple) or not value:
        raise fields.error(key, f"is no list of sizes: {value!r}")
    pairs: list[Size] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise fields.error(key, f"has an entry that is no [height, width]: {pair!r}")
        height, width = (fields.with_value(key, side).count(key) for side in pair)
        pairs.append((width, height))
    return tuple(pairs)
