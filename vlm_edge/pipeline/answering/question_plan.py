"""The plan of one question, and what can be refused from the manifest and the images' headers alone."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL.Image import Image as PilImage

from vlm_edge.core import discover, host
from vlm_edge.core.bundle import Bundle
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.errors import BadInput, DoesNotFit
from vlm_edge.memory.formulas import image_decode_bytes, image_parts_bytes
from vlm_edge.memory.plan import Load, Plan, plan_run
from vlm_edge.pipeline.answering.encoders import SALIENCY_ROLE, decoder_target
from vlm_edge.pipeline.answering.options import CNN, AskOptions, Look
from vlm_edge.pipeline.answering.tile_choice import cell_count
from vlm_edge.units import format_bytes, format_pair
from vlm_edge.vision import bands, saliency, sources
from vlm_edge.vision.raster import FileRaster, Picture

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | PilImage | np.ndarray[Any, Any]
NO_LIMIT = 1 << 62
REDUCED_DECODE_FACTOR = 4
PARTS_FROM_PX = 1 << 24
"""Images of more pixels are read by parts where their format allows it. A smaller one takes 144 MiB, and is decoded but once."""


def source_header(source: ImageInput, max_pixels: int) -> sources.ImageHeader:
    """Size and format without decoding; arrays and PIL images tell theirs."""
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2] if source.ndim >= 2 else (0, 0)
        return sources.ImageHeader(int(width), int(height), "array", "RGB")
    if isinstance(source, PilImage):
        # no format: a PIL image is read in full, a JPEG as well
        return replace(sources.probe(source, max_pixels=max_pixels), format="memory")
    header = sources.probe(source, max_pixels=max_pixels)
    if header.width * header.height <= PARTS_FROM_PX:
        return header
    return replace(header, band_px=bands.band_px(source, max_pixels=max_pixels))


def open_picture(
    bundle: Bundle, source: ImageInput, header: sources.ImageHeader, look: Look, max_pixels: int
) -> Picture:
    """An image's pixels as a Look needs them, as source_header said; raises BadImage."""
    if _by_parts(bundle, header):
        return FileRaster(source, header.width, header.height, max_pixels)
    least = reduced_px(bundle, look)
    if least is None:
        return sources.load_image(source, max_pixels=max_pixels).pixels
    return sources.load_reduced(source, at_least_px=least, max_pixels=max_pixels)


def _by_parts(bundle: Bundle, header: sources.ImageHeader) -> bool:
    return header.band_px > 0 and bundle.manifest.model.geometry.by_parts


def plan(
    bundle: Bundle,
    options: AskOptions,
    *,
    images: tuple[sources.ImageHeader, ...],
    budget_bytes: int | None,
    device: str = "cpu",
    again: bool = False,
) -> Plan:
    """The plan of one question, from the manifest and image headers alone. No budget: the memory that is free now.

    device: whose files are loaded.  again: the process has answered before.
    """
    limits, defaults = bundle.manifest.limits, bundle.manifest.defaults
    family = discover.family(bundle.manifest.model.family)
    look = Look.of(options, defaults, limits.max_tiles, family)
    sizes = bundle.bytes_by_role(device, decoder=decoder_target(device))
    if budget_bytes is None:
        free = host.usable_bytes()
        budget_bytes = NO_LIMIT if free is None else free
    decode = tuple(_decode_bytes(bundle, header, look) for header in images)
    layouts = None if family.free_tiles else image_layouts(bundle, images, look)
    load = Load(
        decode, look.max_tiles, context_tokens=limits.max_model_len,
        kv_bits={"int8": 8, "int4": 4}.get(bundle.manifest.kv_cache(decoder_target(device)), 32), layouts=layouts,
        again=again, saliency_bytes=_saliency_bytes(bundle, look, sizes, images),
    )  # fmt: skip
    return plan_run(bundle.manifest.model, sizes, load, budget_bytes=budget_bytes)


def _saliency_bytes(bundle: Bundle, look: Look, sizes: Mapping[str, int], images: Sequence[sources.ImageHeader]) -> int:
    """What a saliency model takes; of one that cannot be read nothing, since opening it says why."""
    if look.saliency != CNN:
        return 0
    width = max((image.width for image in images if _by_parts(bundle, image)), default=0)
    named = None if look.saliency_model is None else Path(look.saliency_model)
    if named is None:
        return saliency.cnn_bytes(sizes.get(SALIENCY_ROLE, 0), width_px=width)
    return saliency.cnn_bytes(named.stat().st_size, width_px=width) if named.is_file() else 0


def reduced_px(bundle: Bundle, look: Look) -> int | None:
    """The short side that is enough for one view of the whole image; None where every pixel is needed."""
    geometry = bundle.manifest.model.geometry
    return geometry.view_px * REDUCED_DECODE_FACTOR if look.whole and geometry.fixed_views else None


def image_layouts(bundle: Bundle, images: Sequence[sources.ImageHeader], look: Look) -> tuple[ImageLayout, ...]:
    """How the family's own rules cut each image, at most as dear as where tiles of their grid are chosen.

    Raises BadInput for an image that they refuse, or cut into more tiles than the Look allows.
    """
    geometry = bundle.manifest.model.geometry
    if look.chooses:
        return tuple(geometry.most((image.width, image.height), look.max_tiles) for image in images)
    if look.whole:
        geometry = geometry.whole()
    layouts = tuple(geometry.layout((image.width, image.height)) for image in images)
    for image, layout in zip(images, layouts, strict=True):
        tiles = layout.views - 1
        if tiles > look.max_tiles and not look.whole:
            limit = bundle.manifest.limits.max_tiles
            raise BadInput(
                f"an image of {image.width}x{image.height} px is cut into {tiles} tiles; {look.max_tiles} are allowed",
                remedy=f"use --max-tiles {tiles}, or --tiling none" if tiles <= limit else "use --tiling none",
            )
    return layouts


def least_layouts(bundle: Bundle, images: Sequence[sources.ImageHeader], look: Look) -> tuple[ImageLayout, ...]:
    """The same, as far as it is known without the images' pixels: no tile, where tiles are chosen."""
    geometry = bundle.manifest.model.geometry
    if not look.chooses:
        return image_layouts(bundle, images, look)
    sizes = [(image.width, image.height) for image in images]
    return tuple(geometry.overview(size) if geometry.scales(size) else geometry.layout(size) for size in sizes)


def _decode_bytes(bundle: Bundle, header: sources.ImageHeader, look: Look) -> int:
    """What reading an image takes, as open_picture does it and tiles are then chosen."""
    at_least_px, factor = reduced_px(bundle, look), 1
    if _by_parts(bundle, header):
        geometry, size = bundle.manifest.model.geometry, (header.width, header.height)
        cells = cell_count(*size, geometry.view_px) if look.tiling == "auto" and look.max_tiles else 0
        own = (geometry.whole() if look.whole else geometry).layout(size).canvas_px
        return image_parts_bytes(band_px=header.band_px, canvas_px=own[0] * own[1], cells=cells)
    if at_least_px is not None and header.format == "JPEG":
        factor = sources.reduction(header.width, header.height, at_least_px=at_least_px)
    return image_decode_bytes(
        pixels=header.width * header.height, file_format=header.format, reduction=factor, progressive=header.progressive
    )


def check_fits(planned: Plan, *, remark: str = "") -> None:
    """Raise DoesNotFit when a plan's peak exceeds its budget.  remark: what else the message says."""
    if not planned.fits:
        largest = max((i for i in planned.items if planned.peak_phase in i.phases), key=lambda item: item.bytes)
        peak, allowed = format_pair(planned.peak_bytes, planned.budget_bytes)
        raise DoesNotFit(
            f"{planned.peak_phase} needs {peak}; {allowed} are allowed{remark}",
            remedy=f"raise --budget, or shrink the largest part, {largest.name} ({format_bytes(largest.bytes)}: {largest.formula})",
        )
