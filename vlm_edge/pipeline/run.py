"""Image(s) and a question -> an answer, inside the budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

import numpy as np
from PIL.Image import Image as PilImage

from vlm_edge.core import discover, host
from vlm_edge.core.bundle import Bundle, open_bundle, verify_hashes
from vlm_edge.core.contracts import Floats
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit
from vlm_edge.memory.formulas import image_decode_bytes
from vlm_edge.memory.plan import Load, Plan, plan_run
from vlm_edge.pipeline.answer import Answer, TokenCounts, find_boxes, find_points
from vlm_edge.pipeline.fit import Fitted, fit_tiles
from vlm_edge.pipeline.options import AskOptions, Look
from vlm_edge.pipeline.sampling import choose
from vlm_edge.pipeline.stream import TextStream
from vlm_edge.pipeline.views import Seen, SeenCache, prompt_views, see, timed
from vlm_edge.units import format_bytes, parse_bytes
from vlm_edge.vision import sources
from vlm_edge.vision.fingerprint import fingerprint

ImageInput: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | PilImage | np.ndarray[Any, Any]
NANO = Path(__file__).parents[1] / "nano"
EMBEDDED = "nano"
"""The embedded bundle's name where a command asks for a folder; write ./nano for a folder of that name."""
REDUCED_DECODE_FACTOR = 4


class Pipeline:
    """A loaded bundle. Not safe for use from two threads at once: it holds one KV cache."""

    def __init__(self, bundle: Bundle, *, device: str, threads: int, budget_bytes: int | None) -> None:
        self.bundle = bundle
        self.device = device
        self.budget_bytes = budget_bytes
        self._spec = bundle.manifest.model
        started = time.perf_counter()
        family, backend = discover.family(self._spec.family), discover.backend("onnx")
        if family.prompt is None:
            raise BadInput(f"models of the family {family.name} can be planned, not run", remedy="use another bundle")
        self._prompt = family.prompt(bundle)
        self._encoder = backend.encoder(bundle.path("vision.graph", target=device), device, threads)
        self._engine = backend.engine(
            bundle.path("llm.graph", target=device),
            self._spec.text,
            device,
            threads,
            bundle.manifest.limits.max_model_len,
        )
        self._load_ms = 1000 * (time.perf_counter() - started)
        self._join_rows = bundle.manifest.recipe.get("join_rows") is True
        self._cache = SeenCache()
        self._in_engine: list[tuple[str, int]] = []

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        budget: str | int | None = None,
        verify: bool = False,
    ) -> Pipeline:
        """Open a bundle (default: the embedded nano model), check its files and start its sessions.

        device: `cpu`, `cuda` or `auto`.  threads: default one per real core.  budget: bytes or text such as `8GiB`; a plan over
        it is refused before anything is loaded.  verify: hash every file again, whatever is remembered.
        Raises DamagedBundle, MissingDependency, BadInput, DoesNotFit.
        Example: `Pipeline.load().ask("page.png", "what is the total?").text`
        """
        opened = bundle if isinstance(bundle, Bundle) else find_bundle(bundle)
        most = host.most_threads()
        if threads is not None and not 1 <= threads <= most:
            raise BadInput(
                f"--threads {threads} is not allowed", remedy=f"use 1 to {most}; {host.real_cores()} is fastest"
            )
        chosen = choose_device(opened, device)
        limit = parse_bytes(budget) if isinstance(budget, str) else budget
        check_fits(plan(opened, AskOptions(tiling="none"), images=(), budget_bytes=limit))
        verify_hashes(opened, force=verify)
        return cls(opened, device=chosen, threads=threads or host.real_cores(), budget_bytes=limit)

    def ask(
        self,
        image: ImageInput | Sequence[ImageInput],
        question: str,
        options: AskOptions | None = None,
        *,
        on_text: Callable[[str], None] | None = None,
    ) -> Answer:
        """Answer a question about an image (or several, as far as the bundle allows).

        image: a path, `-` for standard input, encoded bytes, a binary stream, a PIL image, or uint8 [H, W, 3].
        on_text: called with each piece of the answer as soon as it is certain.
        A second question about the same image reuses its visual tokens and what the decoder has read of them.
        Raises BadInput, BadImage, DoesNotFit, DamagedBundle.
        """
        started = time.perf_counter()
        options = options or AskOptions()
        images: list[ImageInput] = list(image) if isinstance(image, list | tuple) else [cast("ImageInput", image)]
        if not images:
            raise BadInput("no image is given", remedy="name at least one image")
        limits, defaults = self.bundle.manifest.limits, self.bundle.manifest.defaults
        look = Look.of(options, defaults, limits.max_tiles)
        if len(images) > limits.max_images:
            raise BadInput(
                f"this bundle takes {limits.max_images} image(s) a question, not {len(images)}",
                remedy="ask about fewer images",
            )
        new_tokens = options.max_new_tokens or defaults.max_new_tokens
        tokens = self._prompt.tokens(question, images=len(images))
        self._check_length(len(tokens), new_tokens)
        timings: dict[str, float] = {
            "load": self._load_ms,
            "preprocess": 0.0,
            "saliency": 0.0,
            "vision": 0.0,
            "reduce": 0.0,
        }
        seen, keys, planned = [], [], 0
        for each in images:
            shown, key, peak = self._see(each, look, options, timings)
            seen.append(shown)
            keys.append(key)
            planned = max(planned, peak)
        with timed(timings, "prefill"):
            logits, prompt_length = self._prefill(tokens, seen, keys, new_tokens)
        with timed(timings, "decode"):
            text, generated, reason = self._decode(logits, options, new_tokens, on_text)
        self._load_ms = 0.0
        timings["total"] = timings["load"] + 1000 * (time.perf_counter() - started)
        first = seen[0]
        return Answer(
            text=text,
            tokens=TokenCounts(
                sum(s.tokens_before for s in seen), sum(s.tokens_after for s in seen), prompt_length, generated
            ),
            tiles=first.tiles,
            boxes=find_boxes(text, width=first.width, height=first.height),
            points=find_points(text, width=first.width, height=first.height),
            timings_ms=timings,
            planned_peak_bytes=planned,
            measured_peak_bytes=host.peak_rss_bytes(),
            stop_reason=reason,
            bundle=self.bundle.manifest.name,
            device=self.device,
            members=tuple(tuple(int(m) for m in view.members) for view in first.views),
        )

    def _see(
        self, image: ImageInput, look: Look, options: AskOptions, timings: dict[str, float]
    ) -> tuple[Seen, str, int]:
        """Visual tokens of an image, from the cache where possible; its cache key; the planned peak in bytes."""
        max_pixels = options.max_pixels or self.bundle.manifest.limits.max_pixels
        with timed(timings, "preprocess"):
            header = source_header(image, max_pixels)
            size = header.width, header.height
            again = bool(self._in_engine)
            planned = plan(self.bundle, options, images=(header,), budget_bytes=self.budget_bytes, again=again)
            if isinstance(image, PilImage):
                check_fits(planned)  # its fingerprint decodes it
            key = fingerprint(image) + repr(look)
        known = self._cache.get(key)
        if known is None:
            check_fits(planned)
            with timed(timings, "preprocess"):
                least = _reduced_px(self.bundle, look)
                if least is None:
                    pixels = sources.load_image(image, max_pixels=max_pixels).pixels
                else:
                    pixels = sources.load_reduced(image, at_least_px=least, max_pixels=max_pixels)
            known = see(
                pixels, source_px=size, geometry=self._spec.geometry, look=look, prompt=self._prompt,
                encoder=self._encoder, timings_ms=timings,
            )  # fmt: skip
            self._cache.put(key, known)
        return known, key, planned.peak_bytes

    def _prefill(self, tokens: Sequence[int], seen: list[Seen], keys: list[str], new_tokens: int) -> tuple[Floats, int]:
        """Feed the prompt, less what the decoder's cache already holds of it; returns logits [V] and the prompt's length."""
        pieces: list[tuple[str, Floats]] = []
        waiting = iter(zip(seen, keys, strict=True))
        for token in tokens:
            is_image = token == self._prompt.image_id
            shown, key = next(waiting) if is_image else (None, str(token))
            views = [prompt_views(shown, self._spec.geometry.grid, join_rows=self._join_rows)] if shown else []
            pieces.append((key, self._prompt.splice([token], views)))
        total = sum(len(embeds) for _, embeds in pieces)
        self._check_length(total, new_tokens)
        layout = [(key, len(embeds)) for key, embeds in pieces]
        shared = 0
        while shared < min(len(layout) - 1, len(self._in_engine)) and layout[shared] == self._in_engine[shared]:
            shared += 1
        self._in_engine = []
        self._engine.rewind(sum(length for _, length in layout[:shared]))
        logits = self._engine.forward(np.concatenate([embeds for _, embeds in pieces[shared:]]))
        self._in_engine = layout
        return logits, total

    def _check_length(self, prompt_tokens: int, new_tokens: int) -> None:
        """Raise BadInput when prompt and answer exceed the context: first without the image, before it is decoded."""
        limit = self.bundle.manifest.limits.max_model_len
        if prompt_tokens + new_tokens > limit:
            raise BadInput(
                f"the prompt has {prompt_tokens} tokens and the answer may have {new_tokens}; this bundle's context is {limit}",
                remedy="ask a shorter question, or lower --max-new-tokens or --max-tiles",
            )

    def _decode(
        self, logits: Floats, options: AskOptions, new_tokens: int, on_text: Callable[[str], None] | None
    ) -> tuple[str, int, str]:
        """Sample until an end token, a stop string or the limit: text, number of tokens, and why it stopped."""
        rng = np.random.default_rng(options.seed)
        stream = TextStream(self._prompt.text.decode, stop=options.stop)
        emit = on_text or (lambda _: None)
        generated, reason = 0, "length"
        for _ in range(new_tokens):
            token = choose(logits, temperature=options.temperature, top_p=options.top_p, rng=rng)
            if token in self._prompt.text.eos_ids:
                reason = "eos"
                break
            generated += 1
            emit(stream.push(token))
            if stream.stopped:
                reason = "stop"
                break
            if generated < new_tokens:
                logits = self._engine.forward(self._prompt.splice([token], []))
        emit(stream.finish())
        return stream.text, generated, "stop" if stream.stopped else reason


def find_bundle(path: str | os.PathLike[str] | None) -> Bundle:
    """The bundle in a folder, or the embedded one for None or `nano`; its manifest is checked, nothing is loaded."""
    return open_bundle(NANO if path is None or str(path) == EMBEDDED else Path(path))


def preflight(bundle: Bundle, images: Sequence[ImageInput], options: AskOptions, budget: str | None) -> Fitted:
    """Options that fit the budget, from the manifest and the images' headers alone, before anything is loaded or decoded.

    The number of tiles is lowered where that is enough.
    Raises DoesNotFit where it is not, and BadImage or BadInput for what the headers and options already show.
    """
    limits, limit = bundle.manifest.limits, parse_bytes(budget) if budget else None
    headers = tuple(source_header(image, options.max_pixels or limits.max_pixels) for image in images)
    look = Look.of(options, bundle.manifest.defaults, limits.max_tiles)
    fitted = fit_tiles(options, look.max_tiles, lambda o: plan(bundle, o, images=headers, budget_bytes=limit))
    check_fits(fitted.plan)
    return fitted


def source_header(source: ImageInput, max_pixels: int) -> sources.ImageHeader:
    """Size and format without decoding; arrays and PIL images tell theirs."""
    if isinstance(source, np.ndarray):
        height, width = source.shape[:2] if source.ndim >= 2 else (0, 0)
        return sources.ImageHeader(int(width), int(height), "array", "RGB")
    if isinstance(source, PilImage):
        # no format: a PIL image is read in full, a JPEG as well
        return replace(sources.probe(source, max_pixels=max_pixels), format="memory")
    return sources.probe(source, max_pixels=max_pixels)


def choose_device(bundle: Bundle, device: str) -> str:
    """`auto` is CUDA where bundle and ONNX Runtime have it, else CPU; raises BadInput, and DamagedBundle without a decoder."""
    if device not in ("auto", "cpu", "cuda"):
        raise BadInput(f"--device has no value {device!r}", remedy="use auto, cpu or cuda")
    if not bundle.targets():
        raise DamagedBundle(
            f"bundle {bundle.manifest.name} has no decoder: its vision part alone was exported",
            remedy="`export` makes no decoder yet; vlm_edge.pipeline.build.build_bundle makes whole bundles of LLaVA checkpoints",
        )
    from vlm_edge.backends.onnx.session import available_targets

    usable = [target for target in available_targets() if target in bundle.targets()]
    if device == "auto":
        return "cuda" if "cuda" in usable else "cpu"
    if device not in bundle.targets():
        raise BadInput(
            f"bundle {bundle.manifest.name} has no decoder for {device}",
            remedy=f"use --device {bundle.targets()[0]}",
        )
    if device not in usable:
        raise BadInput(f"ONNX Runtime here has no {device}", remedy="use --device cpu, or pip install 'vlm-edge[gpu]'")
    return device


def plan(
    bundle: Bundle,
    options: AskOptions,
    *,
    images: tuple[sources.ImageHeader, ...],
    budget_bytes: int | None,
    again: bool = False,
) -> Plan:
    """The plan of one question, from the manifest and image headers alone. No budget: the memory that is free now.

    again: the process has answered before.
    """
    limits, defaults = bundle.manifest.limits, bundle.manifest.defaults
    look = Look.of(options, defaults, limits.max_tiles)
    sizes: dict[str, int] = {}
    for artifact in bundle.manifest.artifacts:
        sizes[artifact.role] = sizes.get(artifact.role, 0) + artifact.bytes
    if budget_bytes is None:
        free = host.available_bytes()
        budget_bytes = 1 << 62 if free is None else free - host.CPU_RESERVE_BYTES
    decode = tuple(_decode_bytes(header, _reduced_px(bundle, look)) for header in images)
    load = Load(decode, look.max_tiles, context_tokens=limits.max_model_len, again=again)
    return plan_run(bundle.manifest.model, sizes, load, budget_bytes=budget_bytes)


def _reduced_px(bundle: Bundle, look: Look) -> int | None:
    """The short side that is enough for the global view alone; None where tiles need every pixel."""
    return bundle.manifest.model.geometry.view_px * REDUCED_DECODE_FACTOR if look.max_tiles == 0 else None


def _decode_bytes(header: sources.ImageHeader, at_least_px: int | None) -> int:
    """at_least_px: what sources.load_reduced is asked for; None where the image is read in full."""
    factor = 1
    if at_least_px is not None and header.format == "JPEG":
        factor = sources.reduction(header.width, header.height, at_least_px=at_least_px)
    return image_decode_bytes(
        pixels=header.width * header.height, file_format=header.format, reduction=factor, progressive=header.progressive
    )


def check_fits(planned: Plan) -> None:
    """Raise DoesNotFit when a plan's peak exceeds its budget."""
    if not planned.fits:
        largest = max((i for i in planned.items if planned.peak_phase in i.phases), key=lambda item: item.bytes)
        raise DoesNotFit(
            f"{planned.peak_phase} needs {format_bytes(planned.peak_bytes)}; {format_bytes(planned.budget_bytes)} are allowed",
            remedy=f"raise --budget, or shrink the largest part, {largest.name} ({format_bytes(largest.bytes)}: {largest.formula})",
        )
