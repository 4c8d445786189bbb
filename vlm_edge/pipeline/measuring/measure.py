"""Planned against measured: a bundle's planned run, done in a child process on this CPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlm_edge.core import host
from vlm_edge.errors import BadInput
from vlm_edge.memory.items import MOVING, reserve_share
from vlm_edge.memory.request import visual_of
from vlm_edge.pipeline.embedded import bundle_folder
from vlm_edge.pipeline.measuring.measured_run import NEW_TOKENS, Run
from vlm_edge.pipeline.measuring.own_process import told_by
from vlm_edge.pipeline.planning.plan import Report

_NOISE_SIGMA = 64
_PROGRAM = """
import runpy
from vlm_edge.cli import main, run
runpy.run_module("vlm_edge.pipeline.measuring.measured_run", run_name="__main__")
"""
"""With the command line's imports, as `vlm-edge run` has them."""


@dataclass(frozen=True)
class Measured:
    """Bytes of a phase as planned, without the margin, and the most that was resident."""

    planned_bytes: int
    measured_bytes: int

    @property
    def error(self) -> float:
        """Share by which the plan is over; negative where it is under."""
        return self.planned_bytes / self.measured_bytes - 1


def measure(name: str, report: Report, *, threads: int | None = None) -> Mapping[str, Measured]:
    """Run what a report plans and compare, phase by phase.

    name: the bundle's folder, as given to `plan`.  Raises BadInput for anything but a bundle on a CPU under Linux, CheckFailed
    where the run itself fails.
    """
    request, subject = report.request, report.model.subject
    if report.model.source != "bundle" or request.target != "cpu":
        raise BadInput(
            "--measure runs a bundle on this CPU, and nothing else yet", remedy="name a bundle, or leave it out"
        )
    if not Path("/proc/self/clear_refs").exists():
        raise BadInput("--measure needs Linux, which tells a process its peak memory", remedy="leave it out")
    if request.tiles and not subject.free_tiles:
        raise BadInput(
            f"{subject.name} cuts images by rules of its own, so a number of tiles cannot be measured",
            remedy="leave out --solve tiles, and name an --image-size",
        )
    visual = visual_of(subject, request)
    decoder = "llm.weights" in subject.stored
    # the longest prompt that the plan allows: its cache and its chunks are planned full
    prompt = request.context - NEW_TOKENS if decoder else 0
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "page.png"
        if visual.views:
            _draw(image, request.image_px)
        run = Run(
            bundle=str(bundle_folder(name).resolve()),
            image=str(image) if visual.views else "",
            images=request.images,
            tiles=-1 if request.tiles is None else request.tiles,
            prompt=prompt,
            context=request.context,
            threads=threads or host.real_cores(),
        )
        remedy = "vlm-edge verify the bundle, or plan a smaller run"
        peaks: dict[str, int] = told_by(_PROGRAM, run, what="the planned run", remedy=remedy)
    return {phase: Measured(_planned(report, phase, decoder=decoder), found) for phase, found in peaks.items()}


_OF_DECODER = ("llm.", "kv_cache", "prefill.", "logits", "decode.", "reserve")
"""Items of a decoder, which a bundle may not have yet, and the reserve, which is then the tower's alone."""


def _planned(report: Report, phase: str, *, decoder: bool) -> int:
    not_run = ("margin", "runtime.text")  # words of the prompt are random tokens
    left_out = not_run if decoder else (*not_run, *_OF_DECODER)
    items = [item for item in report.plan.items if phase in item.phases and not item.name.startswith(left_out)]
    moving = 0 if decoder else sum(item.bytes for item in items if item.name in MOVING)
    share = reserve_share(report.request, visual_of(report.model.subject, report.request))
    return sum(item.bytes for item in items) + moving // share


def _draw(path: Path, size: tuple[int, int]) -> None:
    """A page of noise: detail everywhere, so that as many tiles are cut as there is room for."""
    from PIL import Image

    Image.effect_noise(size, _NOISE_SIGMA).convert("RGB").save(path, compress_level=1)
