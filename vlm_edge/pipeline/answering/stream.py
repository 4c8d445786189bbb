"""Tokens -> text as it arrives: never half a character, never part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class TextStream:
    """Collects token ids and hands out text that later tokens cannot change.

    decode: ids -> text.  A token that ends inside a UTF-8 character is held back until the rest has come; so is text
    that may be the beginning of a stop string.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], *, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._window = 0
        self._read = 0
        self._held = ""
        self.text = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add one token; returns the text that is now certain, possibly empty."""
        self._ids.append(token)
        known = self._decode(self._ids[self._window : self._read])
        text = self._decode(self._ids[self._window :])
        if text.endswith(REPLACEMENT) or len(text) <= len(known):
            return ""
        self._window, self._read = self._read, len(self._ids)
        return self._release(text[len(known) :])

    def finish(self) -> str:
        """No more tokens: returns what was held back, an unfinished character as U+FFFD."""
        known = self._decode(self._ids[self._window : self._read])
        tail = "" if self.stopped else self._decode(self._ids[self._window :])[len(known) :]
        return self._release(tail, last=True)

    def _release(self, fresh: str, *, last: bool = False) -> str:
        if self.stopped:
            return ""
        waiting = self._held + fresh
        # The stop string that is complete first wins: then it does not matter how the text falls into tokens.
        found = [(at + len(stop), at) for stop in self._stop if (at := waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            waiting, self._held = waiting[: min(found)[1]], ""
        elif last:
            self._held = ""
        else:
            keep = max((self._overlap(waiting, stop) for stop in self._stop), default=0)
            waiting, self._held = waiting[: len(waiting) - keep], waiting[len(waiting) - keep :]
        self.text += waiting
        return waiting

    @staticmethod
    def _overlap(text: str, stop: str) -> int:
        """Length of the longest end of `text` that is a beginning of `stop`."""
        return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
