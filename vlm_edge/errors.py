"""The error tree: every error says what is wrong, how to mend it, and which exit code it ends the program with."""

from __future__ import annotations

MOST_CHARS = 2000
"""Of a message; the end of a longer one stays, since it says why."""
_END_CHARS = 500


class VlmEdgeError(Exception):
    """Base of all errors that a user can cause or mend.

    message: what is wrong; of a very long one, which quotes a file, the middle is left out.  remedy: what to do about it, as one
    line; shown after `fix:`.
    """

    exit_code = 2

    def __init__(self, message: str, *, remedy: str) -> None:
        if len(message) > MOST_CHARS:
            message = f"{message[: MOST_CHARS - _END_CHARS]} ... {message[-_END_CHARS:]}"
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class BadInput(VlmEdgeError):
    """An image, question, option or file that cannot be used."""


class BadImage(BadInput):
    """An image that is missing, damaged, too large, or no image at all."""


class DamagedBundle(VlmEdgeError):
    """A bundle that is missing, incomplete, changed since it was written, or of an unknown schema."""


class MissingDependency(VlmEdgeError):
    """A Python package that this step needs is not installed, or two that exclude each other are."""


class DoesNotFit(VlmEdgeError):
    """The plan exceeds the budget; nothing was allocated."""

    exit_code = 1


class CheckFailed(VlmEdgeError):
    """A check ran to its end and the answer is no: parity, finite values, hashes."""

    exit_code = 1


class DamagedInstallation(VlmEdgeError):
    """A file that ships with vlm-edge itself is not where it was installed."""
