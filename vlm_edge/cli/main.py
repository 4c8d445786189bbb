"""The program: parses, calls a command, and turns every error into two lines and an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException
from typer.main import get_command

from vlm_edge import __version__
from vlm_edge.cli import interrupt, render
from vlm_edge.cli.start import main
from vlm_edge.cli.usage import PlainUsage
from vlm_edge.errors import DoesNotFit, VlmEdgeError

__all__ = ["execute", "main"]  # `main` for scripts of installations that are older than cli/start.py

INTERRUPTED = interrupt.EXIT_CODE
PIPE_CLOSED = 141
FAILED = 2
_CHECK_PATH = "check the path, its permissions and the disk"
_ANYWHERE = ("--debug", "--quiet", "--verbose")

COMMANDS: Mapping[str, str] = {
    "run": "run", "plan": "plan", "eval": "evaluate", "batch": "batch", "bench": "bench", "build": "build", "export": "export",
    "quantize": "quantize", "verify": "verify", "info": "info", "doctor": "doctor", "recipes": "recipes", "profiles": "profiles",
}  # fmt: skip
"""Command -> the module beside this one that has it, as a function of the module's name, or as a group `app`."""


def _version(asked: bool) -> None:
    if asked:
        render.emit(f"vlm-edge {__version__}", end="\n")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No notes and no progress bars; works after a command too.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="More notes; works after a command too.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show a traceback with an error; works after a command too.")
    ] = False,
) -> None:
    """Options that stand before a command."""


def program(words: Sequence[str]) -> Any:
    """The command line as Typer's command; of its commands those that `words` can ask for.

    A command's options take longer to declare than most of them to read, so the others are left alone where one is named.
    """
    app = typer.Typer(
        name="vlm-edge",
        help="Put a vision-language model on one small GPU, a Jetson or a CPU.\n\n"
        'Example: vlm-edge run page.png "what is the total?"',
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(options)
    for name in words[:1] if words and words[0] in COMMANDS else COMMANDS:
        module = importlib.import_module(f"vlm_edge.cli.{COMMANDS[name]}")
        if hasattr(module, "app"):
            app.add_typer(module.app)
        else:
            app.command(name, cls=PlainUsage)(getattr(module, COMMANDS[name]))
    return get_command(app)


def execute(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code: 0 done, 1 the answer is no, 2 could not run, 130 interrupted."""
    # only the name was typed: whoever does that asks what the program does, and that is no error
    words = _take_verbosity(arguments) or ["--help"]
    try:
        with render.checked_output():
            code = program(words).main(words, prog_name="vlm-edge", standalone_mode=False)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as failure:  # noqa: BLE001 - the last line of defence: no user sees a traceback
        code = INTERRUPTED if interrupt.seen() else _explain(failure)
    if interrupt.seen() or code == INTERRUPTED:
        render.note(interrupt.TEXT.rstrip())
        return INTERRUPTED
    return code if isinstance(code, int) else 0


def _explain(failure: BaseException) -> int:
    """Say on stderr what went wrong and what to do about it; returns the exit code."""
    if isinstance(failure, KeyboardInterrupt | typer.Abort):
        return INTERRUPTED
    if isinstance(failure, render.ReaderGone):
        return PIPE_CLOSED
    if isinstance(failure, VlmEdgeError):
        return _report(failure, failure.message, failure.remedy, failure.exit_code)
    if isinstance(failure, TyperException):
        context = getattr(failure, "ctx", None)
        path = context.command_path if context is not None else "vlm-edge"
        return _report(failure, failure.format_message(), f"{path} --help shows what it takes", FAILED)
    if isinstance(failure, OSError) and failure.filename is not None:
        # no fault of the program: a name that is too long, a folder that may not be entered, a disk that fails
        return _report(failure, f"{failure.filename}: {failure.strerror}", _CHECK_PATH, FAILED)
    if isinstance(failure, MemoryError):
        why = "memory ran out"
        return _report(
            failure, why, "free memory, or lower --max-tiles; --budget plans before it runs", DoesNotFit.exit_code
        )
    text = f"unexpected {type(failure).__name__}: {failure}"
    return _report(failure, text, "run it again with --debug and report what it prints", FAILED)


def _take_verbosity(arguments: Sequence[str]) -> list[str]:
    """Let --quiet, --verbose and --debug stand anywhere before a bare `--`."""
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    for name in _ANYWHERE:
        setattr(render.VERBOSITY, name.removeprefix("--"), name in arguments[:end])
    return [word for i, word in enumerate(arguments) if i >= end or word not in _ANYWHERE]


def _report(failure: BaseException, message: str, remedy: str, code: int) -> int:
    if render.VERBOSITY.debug:
        import traceback

        traceback.print_exception(failure)
    render.error(message or type(failure).__name__, remedy)
    return code
