"""Sizes, start-up, speed and memory of the embedded model on this machine.

python benchmarks/foundation.py size --venv .venv-run     installed MiB by package, .pyc files left out
python benchmarks/foundation.py start                     --help against importing typer and rich; a cold run and a plan
python benchmarks/foundation.py warm                      ms by stage through the API, first and second question
python benchmarks/foundation.py flat                      resident memory over 500 questions in one process
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

PAGE = Path(__file__).parents[1] / "calibration/pages/receipt.png"
QUESTIONS = tuple(entry["question"] for entry in json.loads(PAGE.with_suffix(".json").read_text())["questions"])


def size(venv: Path) -> None:
    """Bytes that each distribution's RECORD lists and that exist, without byte code."""
    packages: dict[str, int] = defaultdict(int)
    (site,) = venv.glob("lib/python*/site-packages")
    for record in site.glob("*.dist-info/RECORD"):
        name = record.parent.name.split("-")[0]
        for line in record.read_text().splitlines():
            path = site / line.rsplit(",", 2)[0].strip('"')
            if path.suffix != ".pyc" and path.is_file():
                packages[name] += path.stat().st_size
    packages.pop("pip", None)
    packages.pop("setuptools", None)
    for name, count in sorted(packages.items(), key=lambda item: -item[1]):
        print(f"{count / 2**20:8.2f} MiB  {name}")
    print(f"{sum(packages.values()) / 2**20:8.2f} MiB  in all; torch {'present' if 'torch' in packages else 'absent'}")


def _median_s(command: list[str], runs: int) -> float:
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def start(runs: int = 11) -> None:
    """Whole processes, the first of each left out, medians."""
    base = _median_s([sys.executable, "-c", "import typer, rich.console, rich.panel, rich.table"], runs)
    shown = _median_s([sys.executable, "-m", "vlm_edge", "--help"], runs)
    print(
        f"import typer and rich {1000 * base:.0f} ms; vlm-edge --help {1000 * shown:.0f} ms; ratio {shown / base:.2f}"
    )
    cold = _median_s([sys.executable, "-m", "vlm_edge", "run", str(PAGE), "what is the total?"], runs)
    print(f"vlm-edge run on the sample page, cold process: {1000 * cold:.0f} ms")
    planned = _median_s([sys.executable, "-m", "vlm_edge", "plan", "llava-1.5-7b", "--device", "rtx-4090"], runs)
    print(f"vlm-edge plan llava-1.5-7b --device rtx-4090: {1000 * planned:.0f} ms; {planned / shown:.2f} times --help")
    done = subprocess.run(
        [sys.executable, "-m", "vlm_edge", "run", str(PAGE), "what is the total?", "--json"],
        check=True, capture_output=True,
    )  # fmt: skip
    memory = json.loads(done.stdout)["memory"]
    print(", ".join(f"{name} {value / 2**20:.0f} MiB" for name, value in memory.items()))


def warm(runs: int = 15) -> None:
    """Medians over first looks at the page, and over second questions about it."""
    from vlm_edge import Pipeline

    pipeline = Pipeline.load()
    first, second = [], []
    for i in range(runs):
        image = PAGE.read_bytes() + bytes(i)  # the same picture in a file that was not seen before
        first.append(pipeline.ask(image, QUESTIONS[0]).timings_ms)
        second.append(pipeline.ask(image, QUESTIONS[1 + i % (len(QUESTIONS) - 1)]).timings_ms)
    for title, rows in (("first question", first[1:]), ("second question", second[1:])):
        stages = {name: statistics.median(row[name] for row in rows) for name in rows[0] if name != "load"}
        print(title + ": " + ", ".join(f"{name} {value:.1f} ms" for name, value in stages.items()))


def flat(count: int = 500) -> None:
    """Resident set after 50 and after `count` questions over five pages."""
    from vlm_edge import Pipeline
    from vlm_edge.core import host

    pipeline = Pipeline.load()
    pages = sorted(PAGE.parent.glob("*.png"))
    seen = []
    for i in range(count):
        pipeline.ask(pages[i % len(pages)], QUESTIONS[i % len(QUESTIONS)])
        if i + 1 in (50, count // 2, count):
            seen.append(f"after {i + 1}: {host.rss_bytes() / 2**20:.1f} MiB")
    print("resident memory " + ", ".join(seen))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("size").add_argument("--venv", type=Path, required=True)
    for name in ("start", "warm", "flat"):
        commands.add_parser(name)
    arguments = parser.parse_args()
    if arguments.command == "size":
        size(arguments.venv)
    else:
        {"start": start, "warm": warm, "flat": flat}[arguments.command]()
