"""Random requests under a hard memory limit of what was planned for each, and the same requests where they cannot fit.

python -m benchmarks.hard_limit [--bundle FOLDER] [--count 50] [--margin 16MiB] [--seed 0]

Rows go to benchmarks/results/hard_limit.md. Each request is a `vlm-edge run` of its own: a page of random size and format, a
question, a number of tiles and a reduction. It may take the planned peak and the margin, and no more: a cgroup (version 2) sees to
that where this process may make one, else RLIMIT_DATA, which bounds private memory when it is allocated, and a watchdog that reads
the resident set every few milliseconds and at the end the system's own record of its peak. Then it is asked again with a budget
just under the least that it needs, and must be refused with exit code 1 before the bundle's graphs are opened or ONNX Runtime is
imported. As a control the first request is asked once more with less than it was measured to need, which must not succeed.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image

from vlm_edge.core import discover, host
from vlm_edge.core.bundle import Bundle
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import find_bundle
from vlm_edge.pipeline.answering.question_plan import plan, source_header
from vlm_edge.units import MIB, format_bytes, parse_bytes

OUT = Path(__file__).parent / "results/hard_limit.md"
CGROUPS = Path("/sys/fs/cgroup")
POLL_S = 0.004
STACK_BYTES = 512 << 10
CONTROL_SHARE = 0.9
"""Of what was measured: too little for the same request."""
KILLED, REFUSED = -signal.SIGKILL, 1
SIDES_PX = (64, 3000)
QUESTIONS = ("what is the total?", "what is the ref?", "How many circles do you see?", "where is the square?")
_REFUSAL = """
import json, sys
opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
from vlm_edge.cli.main import execute
code = execute(sys.argv[1:])
graphs = [name for name in opened if name.endswith((".onnx", ".data", ".safetensors"))]
sys.stderr.write(json.dumps([code, graphs, "onnxruntime" in sys.modules]) + "\\n")
"""


@dataclass(frozen=True)
class Request:
    """A file, a question, and the options; peaks as planned: of it as it is, and of the least that it can be lowered to."""

    image: Path
    size: tuple[int, int]
    question: str
    options: AskOptions
    peak_bytes: int
    least_bytes: int

    def arguments(self, bundle: Bundle, budget_bytes: int) -> list[str]:
        """Of `vlm-edge`."""
        asked = [
            "run",
            str(self.image),
            self.question,
            "--bundle",
            str(bundle.root),
            "--json",
            "--budget",
            f"{budget_bytes}B",
        ]
        for option, value in (("--max-tiles", self.options.max_tiles), ("--reduce", self.options.reduce)):
            asked += [option, str(value)] if value is not None else []
        return [*asked, "--threads", str(host.real_cores())]


@dataclass(frozen=True)
class Done:
    """How a limited process ended, and the most that was resident."""

    code: int
    peak_bytes: int
    output: str
    errors: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bundle", help="a folder; default: the embedded model")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--margin", default="16MiB")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    bundle, margin = find_bundle(given.bundle), parse_bytes(given.margin)
    rows, failures, control = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        for number, request in enumerate(requests(bundle, given.count, given.seed, Path(folder))):
            limit = request.peak_bytes + margin
            done = limited(command(request, bundle), limit)
            refused = refusal(request, bundle)
            row = f"| {number + 1} | {request.size[0]} x {request.size[1]} {request.image.suffix[1:]} | {_asked(request)} "
            row += f"| {request.peak_bytes / MIB:.1f} | {done.peak_bytes / MIB:.1f} | {done.peak_bytes / limit:.3f} "
            row += f"| {'answered' if done.code == 0 else 'KILLED' if done.code == KILLED else f'FAILED {done.code}'} "
            row += f"| {'refused' if refused == '' else refused} |"
            print(row, flush=True)
            rows.append((row, done.peak_bytes / limit))
            if number == 0:
                tight = int(CONTROL_SHARE * done.peak_bytes)
                control = limited(command(request, bundle), tight).code
            if done.code != 0 or refused:
                failures.append((number + 1, done.errors.strip()[-300:]))
    if control == 0:
        failures.append((0, "the control was answered: the limit does not hold"))
    write(bundle, given, rows, sum(number > 0 for number, _ in failures), control)
    for number, errors in failures:
        print(f"request {number}: {errors}", file=sys.stderr)
    sys.exit(1 if failures else 0)


def command(request: Request, bundle: Bundle) -> list[str]:
    """`vlm-edge run` with the planned peak as its budget."""
    return [sys.executable, "-m", "vlm_edge", *request.arguments(bundle, request.peak_bytes)]


def requests(bundle: Bundle, count: int, seed: int, folder: Path) -> list[Request]:
    """Drawn from one seed; their images lie in `folder`."""
    draw = np.random.default_rng(seed)
    family, limits = discover.family(bundle.manifest.model.family), bundle.manifest.limits
    made = []
    while len(made) < count:
        width, height = (int(2 ** draw.uniform(*np.log2(SIDES_PX))) for _ in range(2))
        path = folder / f"{len(made)}.{draw.choice(['png', 'jpg'])}"
        options = AskOptions(
            max_tiles=int(draw.integers(0, limits.max_tiles + 1)) if family.free_tiles else None,
            reduce=str(draw.choice(["none", "threshold", "random"])) if family.reducible else None,
        )
        page(width, height, draw).save(path)
        header = (source_header(path, limits.max_pixels),)
        try:
            peak = plan(bundle, options, images=header, budget_bytes=1 << 62).peak_bytes
            whole = AskOptions(max_tiles=0, tiling="none" if not family.free_tiles else None)
            least = plan(bundle, whole, images=header, budget_bytes=1 << 62).peak_bytes
        except BadInput:  # a family that refuses such proportions
            continue
        made.append(Request(path, (width, height), str(draw.choice(QUESTIONS)), options, peak, min(peak, least)))
    return made


def page(width: int, height: int, draw: np.random.Generator) -> Image.Image:
    """White with dark strokes, so that there is something to look at."""
    pixels = np.full((height, width, 3), 255, np.uint8)
    for _ in range(int(draw.integers(1, 60))):
        x, y = int(draw.integers(0, width)), int(draw.integers(0, height))
        pixels[y : y + int(draw.integers(2, 20)), x : x + int(draw.integers(10, 300))] = draw.integers(0, 200, 3)
    return Image.fromarray(pixels)


def limited(command: Sequence[str], limit_bytes: int) -> Done:
    """Run a command that may hold `limit_bytes`; it is killed where it holds more."""
    group = _cgroup(limit_bytes)

    # RLIMIT_DATA counts what is reserved and never touched too: 8 MiB for each thread's stack, 32 MiB for NumPy's own threads
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        if group is not None:
            (group / "cgroup.procs").write_text("0")
        resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(command, stdout=output, stderr=errors, preexec_fn=confine, env=environment)
        peak = 0
        while child.poll() is None:
            peak = max(peak, _status(child.pid, "VmHWM"))
            if peak > limit_bytes:
                child.kill()
            time.sleep(POLL_S)
        for stream in (output, errors):
            stream.seek(0)
        told = output.read()
        with suppress(ValueError, KeyError, TypeError):  # what the process read of its own peak behind its last step
            peak = max(peak, int(json.loads(told)["memory"]["measured_peak_bytes"]))
        if group is not None:
            group.rmdir()
        code = KILLED if peak > limit_bytes else child.returncode
        return Done(code, peak, told, errors.read())


def mechanism() -> str:
    """What holds the limit on this machine."""
    group = _cgroup(1 << 40)
    if group is None:
        poll = f"{1000 * POLL_S:.0f} ms"
        return f"RLIMIT_DATA, with stacks of 512 KiB, and a watchdog on the resident set's peak (VmHWM) every {poll}"
    group.rmdir()
    return "a cgroup (memory.max, no swap), RLIMIT_DATA and a watchdog on VmHWM"


def _cgroup(limit_bytes: int) -> Path | None:
    """A new group of version 2 with that limit, or None where this process may not make one."""
    group = CGROUPS / f"hard-limit-{time.monotonic_ns()}"
    try:
        if "memory" not in (CGROUPS / "cgroup.subtree_control").read_text().split():
            return None
        group.mkdir()
        (group / "memory.max").write_text(str(limit_bytes))
        (group / "memory.swap.max").write_text("0")
    except OSError:
        if group.is_dir():
            group.rmdir()
        return None
    return group


def _status(pid: int, field: str) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith(f"{field}:")), 0)


def refusal(request: Request, bundle: Bundle) -> str:
    """Ask with less than the least that the request needs; empty where it was refused as it should be, else what happened."""
    asked = request.arguments(bundle, request.least_bytes - MIB)
    done = subprocess.run([sys.executable, "-c", _REFUSAL, *asked], capture_output=True, text=True, check=False)
    try:
        code, graphs, runtime = json.loads(done.stderr.splitlines()[-1])
    except (ValueError, IndexError):
        return f"FAILED {done.returncode}"
    if code != REFUSED:
        return f"exit code {code}"
    return f"opened {len(graphs)} files first" if graphs else "imported onnxruntime first" if runtime else ""


def write(
    bundle: Bundle,
    given: argparse.Namespace,
    rows: list[tuple[str, float]],
    failed: int,
    control: int,
) -> None:
    """The table of one bundle, in place of an earlier one of the same bundle.  failed: requests; the control is none."""
    name = bundle.manifest.name
    options = "".join(f" --{key} {getattr(given, key)}" for key in ("count", "margin", "seed"))
    called = f"python -m benchmarks.hard_limit{' --bundle FOLDER' if given.bundle else ''}{options}"
    shares = sorted(share for _, share in rows)
    versions = ", ".join(f"{tool} {metadata.version(tool)}" for tool in ("onnxruntime", "numpy", "pillow"))
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, {host.real_cores()} cores, {versions}"
    text = [
        f"## {name}", "", f"`{called}`, {datetime.date.today()}, {machine}.", "",
        f"Held by {mechanism()}. Limit: the planned peak and {format_bytes(parse_bytes(given.margin))}.", "",
        f"{len(rows)} requests: {len(rows) - failed} answered within the limit and refused without the memory, "
        f"{failed} not. Measured peak over limit: {shares[0]:.3f} to {shares[-1]:.3f}, "
        f"median {shares[len(shares) // 2]:.3f}.", "",
        f"Control: request 1 with {CONTROL_SHARE} of what it was measured to need ended with exit code {control}.", "",
        "| | image | asked | planned MiB | measured MiB | of the limit | within it | 1 MiB under the least |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |", *(row for row, _ in rows), "",
    ]  # fmt: skip
    head = f"# Hard memory limits\n\n{(__doc__ or '').partition(chr(10))[0]}\n\n"
    before = OUT.read_text("utf-8").removeprefix(head) if OUT.is_file() else ""
    sections = ["## " + part for part in before.split("## ")[1:] if part.partition("\n")[0] != name]
    OUT.write_text(head + "\n".join([*(section.strip() + "\n" for section in sections), *text]), "utf-8")


def _asked(request: Request) -> str:
    tiles, reduce = request.options.max_tiles, request.options.reduce
    return ", ".join([*([f"{tiles} tiles"] if tiles is not None else ["its own tiles"]), *([reduce] if reduce else [])])


if __name__ == "__main__":
    main()
