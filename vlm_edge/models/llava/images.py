"""LLaVA-1.5: an image in one view, cropped, squeezed or padded to the square that its tower takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vlm_edge.core.geometry import Box, Size, TokenGeometry
from vlm_edge.core.image_inputs import ImageInputs
from vlm_edge.models.fields import Fields
from vlm_edge.models.preprocessor import (
    BICUBIC,
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    Triple,
    ViewSettings,
    normalisation,
    preprocessor_fields,
    processor_type,
    resample_field,
    same_view,
    size_edges,
    square_size,
    triple,
)
from vlm_edge.models.towers import patch_grid
from vlm_edge.vision.resize import Colour, Rgb, require_rgb, resized_window, source_box, squared


@dataclass(frozen=True)
class _Defaults:
    """What a class of image processor does where preprocessor_config.json is silent."""

    size: Mapping[str, int]
    crop: bool
    mean: Triple = CLIP_MEAN
    std: Triple = CLIP_STD
    pads: bool = False  # whether its do_pad means a square around the image


_SHORTEST = {"shortest_edge": 224}
_PROCESSORS = {
    "CLIPImageProcessor": _Defaults(_SHORTEST, crop=True),
    "LlavaImageProcessor": _Defaults(_SHORTEST, crop=True, pads=True),
    "BitImageProcessor": _Defaults(_SHORTEST, crop=True),
    "SiglipImageProcessor": _Defaults({"height": 224, "width": 224}, crop=False, mean=HALF, std=HALF),
}
_STEPS = ("do_center_crop", "do_pad")
# What LLaVA's own code base calls the two ways to make an image square; transformers' conversions keep the key.
_PADS = {None: False, "square": False, "pad": True}


@dataclass(frozen=True)
class ImageSettings(ViewSettings[TokenGeometry]):
    """shortest_px: the shorter edge before the crop; None: both edges are squeezed to the view.  background: of padding."""

    shortest_px: int | None = None
    background: Colour | None = None


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> ImageSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    types = tuple(_PROCESSORS)
    fields = preprocessor_fields(preprocessor, types=types, steps=_STEPS)
    defaults = _PROCESSORS[processor_type(fields, types)]
    whole, vision = Fields(config), Fields(config).part("vision_config", optional=True)
    view_px, shortest_px = _view(fields, defaults)
    same_view(fields, "size", view_px, vision, 224)
    side = patch_grid(vision, view_px, patch_px=vision.count("patch_size"))
    pixels = normalisation(fields, defaults.mean, defaults.std)
    return ImageSettings(
        geometry=TokenGeometry(view_px=view_px, grid=(side, side)),
        resample=resample_field(fields, BICUBIC),
        pixels=pixels,
        shortest_px=shortest_px,
        background=_background(triple(fields, "image_mean", defaults.mean)) if _pads(whole, fields, defaults) else None,
    )


def _view(fields: Fields, defaults: _Defaults) -> tuple[int, int | None]:
    """(side of the view, shorter edge before cropping or None for a plain squeeze)."""
    sizes = size_edges(fields, "size", defaults.size, number_means=("shortest_edge",))
    cropped = fields.flag("do_center_crop", defaults.crop)
    if set(sizes) == {"shortest_edge"}:
        if not cropped:
            raise fields.error(
                "do_center_crop", "is off, but size names a shortest edge only: views would not be square"
            )
        crop_px, shortest_px = square_size(fields, "crop_size", 224), sizes["shortest_edge"]
        if crop_px > shortest_px:
            raise fields.error("crop_size", f"of {crop_px} px is larger than the {shortest_px} px of size")
        return crop_px, shortest_px
    view_px = square_size(fields, "size", 224)
    if cropped and square_size(fields, "crop_size", 224) != view_px:
        raise fields.error("crop_size", f"differs from size, which is {view_px} px")
    return view_px, None


def _pads(config: Fields, fields: Fields, defaults: _Defaults) -> bool:
    """The processor's own switch decides; where it is not set, config.json's image_aspect_ratio."""
    if fields.get("do_pad") is not None:
        pads = fields.flag("do_pad", False)
        if pads and not defaults.pads:
            raise fields.error("do_pad", "asks for padding that this class of processor does after resizing")
        return pads
    way = config.get("image_aspect_ratio")
    if not isinstance(way, str | None) or way not in _PADS:
        raise config.error("image_aspect_ratio", f"is none of pad and square: {way!r}")
    return _PADS[way]


def _background(mean: Triple) -> Colour:
    """The mean colour, rounded down; out of 0..255 only if the mean is."""
    red, green, blue = (min(max(int(value * 255), 0), 255) for value in mean)
    return red, green, blue


def prepare(image: Rgb, settings: ImageSettings) -> ImageInputs:
    """uint8 [H, W, 3] -> pixel_values float32 [1, 3, S, S]; raises BadImage for any other array."""
    image_px = require_rgb(image)
    side = settings.geometry.view_px
    if settings.background is not None:
        view = squared(image, side, settings.background, settings.resample)
        box: Box = (0, 0, *image_px)
        edge = max(image_px)
        x0, y0 = (-((edge - length) // 2) for length in image_px)
        frame: tuple[float, float, float, float] = (x0, y0, x0 + edge, y0 + edge)
    else:
        to_px, window = _resize_and_crop(image_px, settings)
        view = resized_window(image, to_px, window, settings.resample)
        box = source_box(window, (0, 0, *to_px), image_px)
        across, down = (length / to for length, to in zip(image_px, to_px, strict=True))
        frame = (window[0] * across, window[1] * down, window[2] * across, window[3] * down)
    layout = settings.geometry.layout(image_px)
    return ImageInputs({"pixel_values": settings.pixels.stack([view])}, (box,), layout, frame)


def _resize_and_crop(image_px: Size, settings: ImageSettings) -> tuple[Size, Box]:
    """(size of the whole image, box of it that becomes the view)."""
    side = settings.geometry.view_px
    if settings.shortest_px is None:
        return (side, side), (0, 0, side, side)
    shorter = min(image_px)
    to_px = tuple(int(settings.shortest_px * edge / shorter) for edge in image_px)
    left, top = ((edge - side) // 2 for edge in to_px)
    return (to_px[0], to_px[1]), (left, top, left + side, top + side)
