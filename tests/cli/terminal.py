"""A terminal for programs that look better on one."""

from __future__ import annotations

import os
import pty
import re
import threading


class Terminal:
    """A pseudo-terminal, what was written to it collected by a thread so that no buffer fills up."""

    def __init__(self) -> None:
        self._reading, writing = pty.openpty()
        self.stream = os.fdopen(writing, "w")
        self._pieces: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while piece := os.read(self._reading, 4096):
                self._pieces.append(piece)
        except OSError:  # Linux: the other end is closed
            pass

    def text(self) -> str:
        """Everything that was written, colours taken out; the terminal is closed."""
        self.stream.close()
        self._reader.join(timeout=10)
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", b"".join(self._pieces).decode()).replace("\r\n", "\n")

    def close(self) -> None:
        self.text()
        os.close(self._reading)
