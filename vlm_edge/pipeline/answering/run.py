"""Image(s) and a question -> an answer, inside the budget."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL.Image import Image as PilImage

from vlm_edge.backends.onnx.session import share_arena
from vlm_edge.core import discover, host
from vlm_edge.core.bundle import Bundle, verify_hashes
from vlm_edge.core.contracts import EncoderRunner, Floats, Positions, SaliencyRunner, Span
from vlm_edge.core.geometry import ImageLayout
from vlm_edge.errors import BadInput
from vlm_edge.memory.plan import Plan
from vlm_edge.pipeline.answering.answer import Answer, TokenCounts
from vlm_edge.pipeline.answering.encoders import decoder_target, open_encoder, open_saliency
from vlm_edge.pipeline.answering.options import CNN, AskOptions, Look
from vlm_edge.pipeline.answering.preflight import choose_device, find_bundle
from vlm_edge.pipeline.answering.question_plan import (
    ImageInput,
    check_fits,
    image_layouts,
    least_layouts,
    open_picture,
    plan,
    reduced_px,
    source_header,
)
from vlm_edge.pipeline.answering.sampling import choose
from vlm_edge.pipeline.answering.stream import TextStream
from vlm_edge.pipeline.answering.view_memory import ViewMemory
from vlm_edge.pipeline.answering.views import ASKS_THE_QUESTION, Hints, Seen, SeenCache, see, timed
from vlm_edge.units import parse_bytes
from vlm_edge.vision import sources
from vlm_edge.vision.fingerprint import fingerprint
from vlm_edge.vision.grounding import find_places


class Pipeline:
    """A loaded bundle. Not safe for use from two threads at once: it holds one KV cache."""

    def __init__(self, bundle: Bundle, *, device: str, threads: int, budget_bytes: int | None) -> None:
        self.bundle = bundle
        self.device = device
        self.budget_bytes = budget_bytes
        self._spec = bundle.manifest.model
        started = time.perf_counter()
        self._family, backend = discover.family(self._spec.family), discover.backend("onnx")
        if self._family.prompt is None:
            raise BadInput(
                f"models of the family {self._family.name} can be planned, not run", remedy="use another bundle"
            )
        self._prompt = self._family.prompt(bundle)
        self._engine = backend.engine(
            bundle.path("llm.graph", target=decoder_target(device)),
            self._spec.text,
            decoder_target(device),
            threads,
            bundle.manifest.limits.max_model_len,
        )
        # behind the decoder, whose largest matrix is held twice for a moment: the tower then takes that room
        self._encoder: EncoderRunner = open_encoder(bundle, device, threads)
        self._load_ms = 1000 * (time.perf_counter() - started)
        self._join_rows = bundle.manifest.recipe.get("join_rows") is True
        self._cache = SeenCache()
        self._views: ViewMemory | None = None
        self._threads = threads
        self._networks: dict[str | None, SaliencyRunner] = {}
        self._in_engine: list[tuple[str, int]] = []
        self._next_position: int | None = None
        self._answered = False

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

        device: `cpu`, `cuda`, `tensorrt` (the vision encoder; the decoder on CUDA) or `auto`.  threads: default one per real
        core.  budget: bytes or text such as `8GiB`; a plan over it is refused before anything is loaded.  verify: hash every
        file again, whatever is remembered.
        Raises DamagedBundle, MissingDependency, BadInput, DoesNotFit.
        Example: `Pipeline.load().ask("page.png", "what is the total?").text`
        """
        opened = bundle if isinstance(bundle, Bundle) else find_bundle(bundle)
        threads = host.session_threads(threads)
        chosen = choose_device(opened, device)
        limit = parse_bytes(budget) if isinstance(budget, str) else budget
        least = AskOptions(tiling="none", reduce="none")
        check_fits(plan(opened, least, images=(), budget_bytes=limit, device=chosen))
        verify_hashes(opened, force=verify)
        if chosen == "cpu":
            share_arena()
        return cls(opened, device=chosen, threads=threads, budget_bytes=limit)

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
        look = self._look(images, options)
        new_tokens = options.max_new_tokens or defaults.max_new_tokens
        timings = {"load": self._load_ms} | dict.fromkeys(("preprocess", "saliency", "vision", "reduce"), 0.0)
        with timed(timings, "preprocess"):
            max_pixels = options.max_pixels or limits.max_pixels
            headers = tuple(source_header(each, max_pixels) for each in images)
            image_layouts(self.bundle, headers, look)
            planned = plan(
                self.bundle,
                options,
                images=headers,
                budget_bytes=self.budget_bytes,
                device=self.device,
                again=self._answered,
            )
        least = least_layouts(self.bundle, headers, look)
        tokens = self._prompt.tokens(question, least)
        self._check_length(self._least_length(tokens, least, look), new_tokens)
        hints = self._hints(look, question, timings)
        about = f"{look!r}{question if hints.words is not None else ''}"
        seen, keys = [], []
        for each, header in zip(images, headers, strict=True):
            shown, key = self._see(each, header, look, planned, max_pixels, timings, hints=hints, about=about)
            seen.append(shown)
            keys.append(key)
        if look.chooses and not self._family.free_tiles:
            tokens = self._prompt.tokens(question, [shown.layout for shown in seen])
        with timed(timings, "prefill"):
            logits, prompt_length = self._prefill(tokens, seen, keys, new_tokens)
        self._answered = True
        with timed(timings, "decode"):
            text, generated, reason = self._decode(logits, options, new_tokens, on_text)
        self._load_ms = 0.0
        timings["total"] = timings["load"] + 1000 * (time.perf_counter() - started)
        first = seen[0]
        boxes, points = find_places(text, self._family.dialects, first.frames)
        return Answer(
            text=text,
            tokens=TokenCounts(
                sum(s.tokens_before for s in seen), sum(s.tokens_after for s in seen), prompt_length, generated
            ),
            tiles=first.tiles,
            boxes=boxes,
            points=points,
            timings_ms=timings,
            planned_peak_bytes=planned.peak_bytes,
            measured_peak_bytes=host.peak_rss_bytes(),
            stop_reason=reason,
            bundle=self.bundle.manifest.name,
            device=self.device,
            members=tuple(tuple(int(m) for m in view) for view in first.members) if self._family.reducible else (),
            views=() if self._family.free_tiles else first.boxes,
            other_tiles=tuple(shown.tiles for shown in seen[1:]),
        )

    def _hints(self, look: Look, question: str, timings: dict[str, float]) -> Hints:
        """What tiles and tokens are chosen by. A saliency model is loaded when it is first asked for.

        Raises BadInput where the bundle has none and none was named, or one cannot be used.
        """
        words = None
        if look.reduce in ASKS_THE_QUESTION:
            words = self._prompt.text.embed(self._prompt.text.encode(question))
        if look.saliency != CNN:
            return Hints(words=words)
        named = look.saliency_model
        if named not in self._networks:
            with timed(timings, "saliency"):
                self._networks[named] = open_saliency(self.bundle, named, self._threads)
        return Hints(self._networks[named], words)

    def _look(self, images: Sequence[ImageInput], options: AskOptions) -> Look:
        limits = self.bundle.manifest.limits
        look = Look.of(options, self.bundle.manifest.defaults, limits.max_tiles, self._family)
        if len(images) > limits.max_images:
            raise BadInput(
                f"this bundle takes {limits.max_images} image(s) a question, not {len(images)}",
                remedy="ask about fewer images",
            )
        return look

    def text_tokens(self, text: str) -> int:
        """Positions of the prompt that asks a text alone, without an image."""
        return len(self._prompt.tokens(text, ()))

    def complete(self, text: str, *, new_tokens: int) -> str:
        """The decoder's greedy answer to a text alone, of so many tokens at most; within the context that is planned."""
        logits, _ = self._prefill(self._prompt.tokens(text, ()), [], [], new_tokens)
        self._answered = True
        return self._decode(logits, AskOptions(), new_tokens, None)[0]

    def least_tokens(self, images: Sequence[ImageInput], question: str, options: AskOptions) -> int:
        """What images, question and answer take of the context at least, as far as the images' headers tell."""
        limits, look = self.bundle.manifest.limits, self._look(images, options)
        headers = [source_header(each, options.max_pixels or limits.max_pixels) for each in images]
        layouts = least_layouts(self.bundle, headers, look)
        least = self._least_length(self._prompt.tokens(question, layouts), layouts, look)
        return least + (options.max_new_tokens or self.bundle.manifest.defaults.max_new_tokens)

    def forget(self) -> None:
        """Drop the visual tokens and the prompt that are remembered: the next question costs all that a new image does."""
        self._cache, self._in_engine = SeenCache(), []

    def remember_views(self) -> ViewMemory:
        """From now on, do not decode, search and encode an image again that is asked about in another way.

        Answers stay as they are, times do not: the result tells what was saved.
        """
        self._views = ViewMemory()
        self._encoder = self._views.encoder(self._encoder)
        return self._views

    def _see(
        self,
        image: ImageInput,
        header: sources.ImageHeader,
        look: Look,
        planned: Plan,
        max_pixels: int,
        timings: dict[str, float],
        *,
        hints: Hints,
        about: str,
    ) -> tuple[Seen, str]:
        """Visual tokens of an image, from the cache where possible, and its cache key."""
        with timed(timings, "preprocess"):
            if isinstance(image, PilImage):
                check_fits(planned)  # its fingerprint decodes it
            content = fingerprint(image)
            key = content + about
        known = self._cache.get(key)
        if known is None:
            check_fits(planned)
            views, shown_as = self._views, look
            with timed(timings, "preprocess"):
                if views is None:
                    pixels = open_picture(self.bundle, image, header, look, max_pixels)
                else:
                    pixels = views.pixels(
                        f"{content} {reduced_px(self.bundle, look)}",
                        lambda: open_picture(self.bundle, image, header, look, max_pixels),
                    )
                    # elsewhere a tile is a cell of the family's grid, and not given as a box
                    shown_as = views.look(content, look) if self._family.free_tiles else look
            known = see(
                pixels, source_px=(header.width, header.height), look=shown_as, prompt=self._prompt, encoder=self._encoder,
                timings_ms=timings, free_tiles=self._family.free_tiles, join_rows=self._join_rows, hints=hints,
            )  # fmt: skip
            if views is not None:
                views.keep_tiles(content, look, known.tiles, timings["saliency"])
            self._cache.put(key, known)
        return known, key

    def _prefill(self, tokens: Sequence[int], seen: list[Seen], keys: list[str], new_tokens: int) -> tuple[Floats, int]:
        """Feed the prompt, less what the decoder's cache already holds of it; returns logits [V] and the prompt's length."""
        pieces = self._pieces(tokens, seen, keys)
        total = sum(len(piece.embeds) for piece in pieces)
        self._check_length(total, new_tokens)
        positions = self._prompt.positions(_spans(pieces))
        layout = [(piece.key, len(piece.embeds)) for piece in pieces]
        shared = 0
        # Tokens that see all of their prompt have nothing to share with another one.
        if not self._spec.text.bidirectional_prefix:
            most = min(len(layout) - 1, len(self._in_engine))
            while shared < most and layout[shared] == self._in_engine[shared]:
                shared += 1
        self._in_engine = []
        begin = sum(length for _, length in layout[:shared])
        self._engine.rewind(begin)
        embeds = np.concatenate([piece.embeds for piece in pieces[shared:]])
        logits = self._forward(embeds, None if positions is None else positions[:, begin:])
        self._next_position = None if positions is None else int(positions.max()) + 1
        self._in_engine = layout
        return logits, total

    def _pieces(self, tokens: Sequence[int], seen: list[Seen], keys: list[str]) -> list[_Piece]:
        """The prompt's text token by token, and each run of each image."""
        image_id = self._prompt.image_id
        text = [token for token in tokens if token != image_id]
        rows = iter(self._prompt.text.embed(text))
        runs = (
            _Piece(f"{key}/{number}", run, shown.layout.of_run(number))
            for shown, key in zip(seen, keys, strict=True)
            for number, run in enumerate(shown.runs)
        )
        pieces = [next(runs, None) if token == image_id else _Piece(str(token), next(rows)[None]) for token in tokens]
        if None in pieces or next(runs, None) is not None:
            raise BadInput("an image was changed while it was read", remedy="ask again")
        return [piece for piece in pieces if piece is not None]

    def _least_length(self, tokens: Sequence[int], layouts: Sequence[ImageLayout], look: Look) -> int:
        """The prompt's length as far as it is known without the images' pixels."""
        text = len(tokens) - tokens.count(self._prompt.image_id)
        if look.reduce != "none" or (self._family.free_tiles and look.max_tiles):
            return text
        return text + sum(layout.visual_tokens for layout in layouts)

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
            if token in self._prompt.text.eos_ids and not options.ignore_eos:
                reason = "eos"
                break
            generated += 1
            emit(stream.push(token))
            if stream.stopped:
                reason = "stop"
                break
            if generated < new_tokens:
                logits = self._step(token)
        emit(stream.finish())
        return stream.text, generated, "stop" if stream.stopped else reason

    def _step(self, token: int) -> Floats:
        """One generated token more; where positions have three parts, all of them go on from the prompt's largest."""
        embeds = self._prompt.text.embed([token])
        if self._next_position is None:
            return self._forward(embeds, None)
        positions = np.full((3, 1), self._next_position, np.int64)
        self._next_position += 1
        return self._forward(embeds, positions)

    def _forward(self, embeds: Floats, positions: Positions | None) -> Floats:
        """Positions are given to decoders that take them, and to no other."""
        return self._engine.forward(embeds) if positions is None else self._engine.forward(embeds, positions)


@dataclass(frozen=True, eq=False)
class _Piece:
    """A part of a prompt that is in the decoder's cache as a whole or not at all: what it is, and its embeddings [T, D]."""

    key: str
    embeds: Floats
    image: ImageLayout | None = None


def _spans(pieces: Sequence[_Piece]) -> list[Span]:
    """Lengths of a prompt's parts, text that follows text as one."""
    spans: list[Span] = []
    for piece in pieces:
        begun = spans.pop()[0] if spans and spans[-1][1] is None and piece.image is None else 0
        spans.append((begun + len(piece.embeds), piece.image))
    return spans
