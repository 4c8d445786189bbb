"""What a plan is asked about: the sizes of a model, and what is wanted of it. Frozen, and valid once made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlm_edge.core.geometry import (
    AnyResGeometry,
    Geometry,
    ImageLayout,
    PatchGeometry,
    Size,
    visual_token_count,
)
from vlm_edge.core.reduction import kept_tokens
from vlm_edge.core.specs import ModelSpec, ProjectorSpec, TextSpec, VisionSpec
from vlm_edge.errors import BadInput

BITS: Mapping[str, int] = {"fp32": 32, "fp16": 16, "int8": 8, "int4": 4}
WEIGHTS = ("awq", "int8", "fp16", "fp32")
LM_HEADS = ("fp16", "int8", "int4", "fp32")
VISION_DTYPES = ("fp16", "fp32", "int8")
KV_DTYPES = ("fp32", "fp16", "int8", "int4")
TARGETS = ("cpu", "cuda")
GROUP_SIZES = (16, 32, 64, 128, 256)
ENCODE_VIEWS = 4
PREFILL_CHUNK = 512
"""Views in one call of the encoder and positions in one of the decoder: the plan's bound, and what the runners keep to."""
MOST_IMAGES, MOST_BATCH, MOST_TILES, MOST_CONTEXT, MOST_EDGE_PX = 1 << 10, 1 << 16, 1 << 12, 1 << 24, 1 << 20


@dataclass(frozen=True)
class Subject:
    """The parts of a model. Without `vision` it is a text model.

    stored: bytes by item name where they are known from files, which then go before any formula.
    free_tiles: tiles may lie anywhere and be any number; otherwise the family cuts images by rules of its own.
    chosen_tiles: of those, some may be shown without the others.
    """

    name: str
    text: TextSpec
    vision: VisionSpec | None = None
    projector: ProjectorSpec | None = None
    geometry: Geometry | None = None
    stored: Mapping[str, int] = field(default_factory=dict)
    free_tiles: bool = True
    chosen_tiles: bool = False

    @staticmethod
    def of(name: str, model: ModelSpec, geometry: Geometry | None = None) -> Subject:
        """A whole model; geometry: how the family cuts images, where the spec's own is that of one nominal view."""
        return Subject(name, model.text, model.vision, model.projector, geometry or model.geometry)


@dataclass(frozen=True)
class Request:
    """What is wanted. Sizes are per process: `batch` sequences, each with `images` images.

    image_px: (width, height) of each image; what decoding it costs, and how the family cuts it.
    tiles: full-resolution tiles beside a global view, or what an image is cut into by the family's rules; 0: the whole image
    in one view, as the family shows it; None: the family's own way of cutting an image of image_px.
    keep: share of each view's visual tokens that a reduction leaves.
    context: positions of the KV cache, for prompt and answer.  prefill_chunk: positions in one call; 0: the whole prompt.
    fused_vision: the tower's attention never holds a matrix of scores.  release_tower: tower and decoder take turns.
    again: the process has answered before, and its sessions keep what they held.
    lean: the decoder's runtime frees every tensor after its last reader, which ours does not.
    unified: host and device share one memory.  runtime_bytes: context, libraries and workspaces.
    Raises BadInput for values out of range.
    """

    target: str = "cuda"
    unified: bool = False
    weights: str = "awq"
    group_size: int = 128
    lm_head: str = "fp16"
    vision_dtype: str = "fp16"
    kv_cache: str = "fp16"
    images: int = 1
    image_px: Size = (1920, 1080)
    tiles: int | None = None
    keep: float = 1.0
    context: int = 4096
    batch: int = 1
    prefill_chunk: int = PREFILL_CHUNK
    encode_views: int = ENCODE_VIEWS
    fused_vision: bool = False
    release_tower: bool = False
    lean: bool = False
    again: bool = False
    runtime_bytes: int = 0
    margin_bytes: int = 0

    def __post_init__(self) -> None:
        for option, value, known in (
            ("--target", self.target, TARGETS),
            ("--weights", self.weights, WEIGHTS),
            ("--lm-head", self.lm_head, LM_HEADS),
            ("--vision-dtype", self.vision_dtype, VISION_DTYPES),
            ("--kv-cache-dtype", self.kv_cache, KV_DTYPES),
        ):
            if value not in known:
                raise BadInput(f"{option} has no value {value!r}", remedy=f"use one of: {', '.join(known)}")
        if self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise BadInput(f"--group-size {self.group_size} is not supported", remedy=f"use one of: {sizes}")
        _within("--images", self.images, 0, MOST_IMAGES)
        _within("--max-tiles", self.tiles or 0, 0, MOST_TILES)
        _within("--max-model-len", self.context, 1, MOST_CONTEXT)
        _within("--batch-size", self.batch, 1, MOST_BATCH)
        for edge in self.image_px:
            _within("--image-size", edge, 1, MOST_EDGE_PX)
        if not 0 < self.keep <= 1:
            raise BadInput(f"--keep {self.keep} is not allowed", remedy="use a number above 0 and at most 1")

    @property
    def elem_bytes(self) -> int:
        """Bytes of an activation: ONNX Runtime computes in fp32 on a CPU, graphs for CUDA in fp16."""
        return 4 if self.target == "cpu" else 2


@dataclass(frozen=True)
class Visual:
    """What the images of one sequence become.

    views: pictures of all images that the encoder sees.  at_once: those of one image, since images are encoded one by one.
    patches: of the largest view.  view_px: pixels of the largest view.  packed: an image is one row of patches.
    tokens: visual tokens after reduction.  prompt: positions in the prompt, markers counted.  cross: positions that
    cross-attention layers read instead.
    """

    views: int = 0
    at_once: int = 0
    patches: int = 0
    view_px: int = 0
    packed: bool = False
    tokens: int = 0
    prompt: int = 0
    cross: int = 0


def visual_of(subject: Subject, request: Request) -> Visual:
    """How many views and tokens the request's images are; raises BadInput for a size that the family refuses.

    A reduction keeps a share of each view's tokens, rounded down as the runtime does; families whose tokens form one grid
    for the whole image keep a share of that.
    """
    vision, geometry, images = subject.vision, subject.geometry, request.images
    if vision is None or geometry is None or images == 0:
        return Visual()
    if subject.text.cross_attention_layers:
        tokens = vision.joint_views * kept_tokens(geometry.tokens_per_view, request.keep)
        seen, area = vision.joint_views, geometry.view_px**2
        return Visual(images * seen, seen, vision.patches, area, False, images * tokens, images, images * tokens)
    if request.tiles and geometry.scales(request.image_px):
        layouts = (geometry.most(request.image_px, request.tiles),) * images
        return visual_of_layouts(vision, geometry, layouts, keep=request.keep)
    if request.tiles:
        return visual_of_tiles(vision, geometry, tiles=request.tiles, images=images, keep=request.keep)
    cut = geometry if request.tiles is None else geometry.whole()
    return visual_of_layouts(vision, cut, (cut.layout(request.image_px),) * images, keep=request.keep)


def visual_of_tiles(vision: VisionSpec, geometry: Geometry, *, tiles: int, images: int, keep: float = 1.0) -> Visual:
    """Each image is a global view and that many tiles, all squares of one size."""
    views = images * (1 + tiles)
    tokens = views * kept_tokens(geometry.tokens_per_view, keep)
    dropped = views * geometry.tokens_per_view - tokens
    prompt = visual_token_count(geometry, tiles=tiles, images=images) - dropped
    side = geometry.view_px if isinstance(geometry, PatchGeometry) else vision.image_px
    return Visual(views, 1 + tiles if images else 0, (side // vision.patch_px) ** 2, side**2, False, tokens, prompt)


def visual_of_layouts(
    vision: VisionSpec, geometry: Geometry, layouts: tuple[ImageLayout, ...], *, keep: float = 1.0
) -> Visual:
    """Images cut by the family's own rules."""
    if not layouts:
        return Visual()
    tokens = sum(_kept(geometry, layout, keep) for layout in layouts)
    free = not geometry.fixed_views
    patches = [_patches(vision, geometry, layout) if free else vision.patches for layout in layouts]
    areas = [count * vision.patch_px**2 if free else vision.image_px**2 for count in patches]
    return Visual(
        views=sum(layout.views for layout in layouts),
        at_once=max(layout.views for layout in layouts),
        patches=max(patches),
        view_px=max(areas),
        packed=isinstance(geometry, PatchGeometry),
        tokens=tokens,
        prompt=tokens + sum(layout.marker_tokens for layout in layouts),
    )


def _kept(geometry: Geometry, layout: ImageLayout, keep: float) -> int:
    if layout.visual_tokens == layout.views * geometry.tokens_per_view:
        return layout.views * kept_tokens(geometry.tokens_per_view, keep)
    if isinstance(geometry, AnyResGeometry) and keep < 1:  # views are reduced, newlines are not
        newlines = layout.token_grid[0] or 1
        return min(layout.visual_tokens, layout.views * kept_tokens(geometry.tokens_per_view, keep) + newlines)
    return kept_tokens(layout.visual_tokens, keep)


def _patches(vision: VisionSpec, geometry: Geometry, layout: ImageLayout) -> int:
    """Patches of a view that has the size of the canvas, or of those parts of it that are kept."""
    if isinstance(geometry, PatchGeometry):
        return layout.visual_tokens * geometry.merge**2
    return (layout.canvas_px[0] // vision.patch_px) * (layout.canvas_px[1] // vision.patch_px)


def _within(option: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise BadInput(f"{option} {value} is not allowed", remedy=f"use {least} to {most}")
