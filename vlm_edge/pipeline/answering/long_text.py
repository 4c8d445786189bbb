"""`run --context FILE`: a text beside the images, summarised by the same decoder where it is longer than its share of the prompt.

Map, then reduce: each part of the text is summarised on its own with the question in view, then the summaries together, until
they fit. Every pass is a prompt within the bundle's context, which is what the plan has counted.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from vlm_edge.errors import BadInput

MAX_BYTES = 2 << 20
DEFAULT_BUDGET = 2048
LEAST_BUDGET = 16
LEAST_SHRINKING = 2
"""A part is at least this many times as long as its summary may be, so that each round halves the text at least."""
MOST_ROUNDS = 16
_SUMMARY_SHARE = 4
_MOST_CHARS = 8
"""Characters for each position of the context, beyond which a text is not counted at once: it does not fit."""
_BREAKS = ("\n\n", "\n", ". ", " ")
MAP = (
    "Summarise this part of a document in a few sentences. Keep names and numbers, and whatever helps to answer: "
    "{question}\n\n{text}"
)
REDUCE = (
    "These are notes on the parts of one document. Join them into one short summary. Keep names and numbers, and whatever "
    "helps to answer: {question}\n\n{text}"
)
QUESTION = "Context:\n{context}\n\nQuestion: {question}"


class TextModel(Protocol):
    """A decoder that is asked without an image."""

    def text_tokens(self, text: str) -> int:
        """Positions of the prompt that asks it."""
        ...

    def complete(self, text: str, *, new_tokens: int) -> str:
        """Its greedy answer, of so many tokens at most."""
        ...


@dataclass(frozen=True)
class Condensed:
    """What became of a text. tokens: its own; of its parts, where it was too long to be counted at once.

    calls: passes of the decoder.  cut: the last summary was still too long, and its end is missing.
    """

    text: str
    tokens: int
    budget_tokens: int
    tokens_in_prompt: int
    rounds: int = 0
    calls: int = 0
    cut: bool = False
    ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The key `context` of `run --json`, without the file."""
        plain = asdict(self)
        if not self.rounds:
            del plain["text"]  # it is the file's own
        return {"summarised": self.rounds > 0, **plain, "ms": round(self.ms, 2)}


def read_context(path: Path) -> str:
    """A text file in UTF-8 of at most MAX_BYTES; raises BadInput for anything else."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BadInput(f"--context {path} is no file", remedy="name a text file")
        if status.st_size > MAX_BYTES:
            size = f"{status.st_size / (1 << 20):.1f} MiB"
            raise BadInput(
                f"--context {path} has {size}, more than the {MAX_BYTES >> 20} MiB that are read",
                remedy="cut out what the question is about",
            )
        content = path.read_bytes()
    except (OSError, ValueError) as cause:
        raise BadInput(f"--context {path} cannot be read: {cause}", remedy="check the path") from cause
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise BadInput(
            f"--context {path} is no text in UTF-8: {cause}", remedy="convert it, or name another file"
        ) from cause
    if "\0" in text:
        raise BadInput(f"--context {path} is binary", remedy="name a text file; convert documents to text first")
    if not text.strip():
        raise BadInput(f"--context {path} is empty", remedy="leave --context out, or name another file")
    return text.strip()


def budget_for(asked: int | None, *, context: int, taken: int) -> int:
    """Tokens that the text may take of the prompt: as asked, else DEFAULT_BUDGET, or half of what is free where that is less.

    context: the bundle's.  taken: what question, images and answer need at least.  Raises BadInput where nothing is left.
    """
    free = context - taken
    if asked is None:
        asked = min(DEFAULT_BUDGET, max(LEAST_BUDGET, free // 2))
    if asked < LEAST_BUDGET:
        raise BadInput(f"--context-budget {asked} is not allowed", remedy=f"use {LEAST_BUDGET} or more")
    if asked > free:
        remedy = f"use --context-budget {free} or less" if free >= LEAST_BUDGET else "ask without --context"
        raise BadInput(
            f"--context-budget {asked} does not fit: of this bundle's context of {context}, images, question and answer take "
            f"{taken} at least",
            remedy=f"{remedy}, or lower --max-tiles or --max-new-tokens",
        )
    return asked


def condense(
    text: str,
    question: str,
    model: TextModel,
    *,
    budget: int,
    context: int,
    on_pass: Callable[[int, int, str], None] = lambda _done, _total, _title: None,
) -> Condensed:
    """The text as it is where it has at most `budget` tokens, else what the decoder makes of it.

    context: positions that one prompt and its answer may take.  on_pass: called with passes done and planned in a round.
    Raises BadInput where the context is too short for summaries, or the text holds a control token.
    """
    started = time.perf_counter()
    frame, most_chars = _checked(model, ".") - 1, _MOST_CHARS * context

    def counted(part: str) -> int | None:
        """Tokens of a text by itself; None for one that is far longer than the context."""
        if not part:
            return 0
        return _checked(model, part) - frame if len(part) <= most_chars else None

    whole = counted(text)
    if whole is not None and whole <= budget:
        return Condensed(text, whole, budget, whole)
    new_tokens = min(budget, context // _SUMMARY_SHARE)
    limit = context - new_tokens
    longest = max(_checked(model, form.format(question=question, text=".")) for form in (MAP, REDUCE))
    if limit - longest < LEAST_SHRINKING * new_tokens:
        raise BadInput(
            f"a context of {context} is too short to summarise a text in", remedy="name a shorter text with --context"
        )
    rounds = calls = 0
    form, size = MAP, whole
    while (size is None or size > budget) and rounds < MOST_ROUNDS:
        rounds += 1
        filled = partial(form.format, question=question)
        parts = split(text, lambda part, f=filled: _checked(model, f(text=part)) <= limit, most_chars=most_chars)  # type: ignore[misc]
        whole = sum(counted(part) or 0 for part in parts) if whole is None else whole
        title = f"summarise, round {rounds}"
        summaries = []
        for number, part in enumerate(parts):
            on_pass(number, len(parts), title)
            summaries.append(model.complete(filled(text=part), new_tokens=new_tokens).strip())
        on_pass(len(parts), len(parts), title)
        calls += len(parts)
        text, form = "\n".join(filter(None, summaries)), REDUCE
        size = counted(text)
        if len(parts) == 1:
            break
    kept = text
    if size is None or size > budget:
        kept = split(text, lambda part: (counted(part) or 0) <= budget, most_chars=most_chars)[0].strip()
    elapsed = 1000 * (time.perf_counter() - started)
    return Condensed(kept, whole or 0, budget, counted(kept) or 0, rounds, calls, cut=kept != text, ms=elapsed)


def split(text: str, fits: Callable[[str], bool], *, most_chars: int) -> list[str]:
    """Parts that fit, which make the text again when they are joined.

    They end at a paragraph, line, sentence or word where there is one in their second half.  most_chars: of a part.
    """
    parts: list[str] = []
    guess = most_chars
    while text:
        length = min(len(text), guess)
        while length > 1 and not fits(text[:length]):
            length //= 2
        for share in (2, 4, 8):
            longer = min(len(text), most_chars, length + length // share)
            if longer > length and fits(text[:longer]):
                length = longer
        guess = length
        end = _break_before(text, length) if length < len(text) else length
        parts.append(text[:end])
        text = text[end:]
    return parts


def _break_before(text: str, length: int) -> int:
    """Where to end a part of at most `length` characters."""
    for mark in _BREAKS:
        at = text.rfind(mark, length // 2, length)
        if at >= 0:
            return at + len(mark)
    return length


def _checked(model: TextModel, text: str) -> int:
    try:
        return model.text_tokens(text)
    except BadInput as cause:
        message = cause.message.replace("the question", "the context", 1)
        raise BadInput(message, remedy=cause.remedy) from cause
