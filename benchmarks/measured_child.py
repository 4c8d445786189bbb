"""A command of vlm-edge in a process of its own: its peak resident memory, its time, and the JSON that it prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any


def measured(*arguments: str) -> tuple[int, float, dict[str, Any]]:
    """Run `vlm-edge ARGUMENTS --json`; returns peak bytes, seconds and its report. Exits as the command does when it fails."""
    command = [sys.executable, "-m", "vlm_edge", *arguments, "--json"]
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        child = subprocess.Popen(command, stdout=output)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(child.returncode)
        output.seek(0)
        return usage.ru_maxrss * 1024, time.perf_counter() - start, json.load(output)


def gib(count: int) -> str:
    """Bytes as GiB with two digits."""
    return f"{count / 2**30:.2f} GiB"
