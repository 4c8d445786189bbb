"""Ctrl-C: exit code 130 and no traceback, whatever library it falls into.

KeyboardInterrupt alone does not do. An extension module that is interrupted while it is imported raises ImportError in
its place, and in a finalizer the interpreter prints it and goes on. So the handler also remembers that it was called.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sys import UnraisableHookArgs

EXIT_CODE = 130
TEXT = "interrupted\n"


class _Watch:
    seen = False


_WATCH = _Watch()


def watch() -> None:
    """Handle SIGINT from here on, unless whoever started the program had it ignored, as shells do in the background."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_signal)
        sys.unraisablehook = _on_unraisable


def seen() -> bool:
    """Whether Ctrl-C was pressed, even where some library swallowed it or made another error of it."""
    return _WATCH.seen


def ignore() -> None:
    """All is done but leaving: from here on an interrupt would only spoil the exit."""
    if signal.getsignal(signal.SIGINT) is _on_signal:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _on_signal(_number: int, _frame: FrameType | None) -> None:
    if _WATCH.seen:  # pressed again: whatever is still being tidied up takes too long
        os._exit(EXIT_CODE)
    _WATCH.seen = True
    raise KeyboardInterrupt


def _on_unraisable(unraisable: UnraisableHookArgs) -> None:
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)
        return
    if sys.stderr is not None:
        sys.stderr.write(TEXT)
        sys.stderr.flush()
    os._exit(EXIT_CODE)
