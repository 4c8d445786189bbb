"""The entry point. It imports next to nothing, so that Ctrl-C is handled before the imports that take time."""

from __future__ import annotations

import atexit
import os
import sys
from typing import NoReturn

from vlm_edge.cli import interrupt


def main() -> None:
    """Entry point of the `vlm-edge` script."""
    code = interrupt.EXIT_CODE
    try:
        interrupt.watch()
        _occupy_closed_streams()
        # to look for pydantic's plugins, the metadata of every installed package would be read
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        from vlm_edge.cli.main import execute

        code = execute(sys.argv[1:])
        _drop_what_cannot_be_written()
        interrupt.ignore()
    except BaseException:
        # only an import that was cut short ends here with an interrupt: execute() handles its own
        if not interrupt.seen():
            raise
        interrupt.ignore()
        if sys.stderr is not None:
            sys.stderr.write(interrupt.TEXT)
    _leave(code)


def _leave(code: int) -> NoReturn:
    """End without taking the interpreter apart, a sixth of a short command's time; what was registered for the end still runs."""
    atexit._run_exitfuncs()
    _drop_what_cannot_be_written()
    os._exit(code)


def _occupy_closed_streams() -> None:
    """Give closed standard streams' numbers away, or the next file that is opened would get, say, what C writes to stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one


def _drop_what_cannot_be_written() -> None:
    """A full disk or a closed pipe was reported; left in a buffer, the text would make the interpreter report it again."""
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
