"""Engines to compare, each a process of its own that waits with its model loaded.

A process prints one line when it is ready, which says what it is, and one line in answer to each line that it is given. So engines
can take turns, a busy moment hits all of them, and none shares an environment or a thread pool with another.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Engine:
    """A waiting process; `version` is its first line. Raises SystemExit when it stops before it has answered."""

    def __init__(self, name: str, command: Sequence[str], threads: int) -> None:
        self.name = name
        settings = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by close)
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True, env=settings
        )
        self.version = self._line()

    def ask(self, line: str) -> str:
        """The answer to one line."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        return self._line()

    def close(self) -> None:
        # Leaving closes the pipes, which ends the worker's loop, and waits.
        with self._process, self._said:
            pass

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read()[-2000:]
            self.close()
            raise SystemExit(f"{self.name} stopped with {code}\n{said}")
        return line.strip()
