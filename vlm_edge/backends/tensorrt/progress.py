"""TensorRT's progress reports while it builds, as plain calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

Report = Callable[[str, int, int], None]
"""(phase, steps done, steps in all); called from whichever thread TensorRT works in."""


def monitor(tensorrt: Any, report: Report) -> Any:
    """An IProgressMonitor that calls `report`, or None where this TensorRT has no such thing.

    What `report` raises, Ctrl-C among it, cannot pass through TensorRT: it is kept in `failure`, the build is cancelled,
    and the caller raises it again.
    """
    if not hasattr(tensorrt, "IProgressMonitor"):
        return None

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]  # the base class is known at run time only
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.failure: BaseException | None = None
            self._steps: dict[str, int] = {}
            self._lock = threading.Lock()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            with self._lock:
                self._steps[phase_name] = num_steps
            self._tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with self._lock:
                steps = self._steps.get(phase_name, 0)
            self._tell(phase_name, step + 1, steps)
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            with self._lock:
                steps = self._steps.pop(phase_name, 0)
            self._tell(phase_name, steps, steps)

        def _tell(self, phase: str, done: int, steps: int) -> None:
            if self.failure is not None:
                return
            try:
                report(phase, done, steps)
            except BaseException as error:  # noqa: BLE001  # raised again after the build
                self.failure = error

    return Monitor()
