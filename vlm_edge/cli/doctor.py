"""vlm-edge doctor"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson

if TYPE_CHECKING:
    from vlm_edge.pipeline.checking.doctor import Check
    from vlm_edge.pipeline.machine import Machine


def doctor(
    as_json: AsJson = False,
) -> None:
    """Show what this machine has, what is missing, and the command that installs it.

    Exit code 0: `run` can work here; 1: it cannot.  Example: vlm-edge doctor
    """
    from vlm_edge.pipeline.checking.doctor import judge
    from vlm_edge.pipeline.machine import PACKAGES, examine

    machine = examine()
    checks = judge(machine)
    if as_json:
        from vlm_edge.core.load import to_plain

        plain = to_plain(machine)
        del plain["versions"]
        versions = {name: machine.versions.get(name) for name in PACKAGES}
        render.emit_json({"ok": checks[0].ok, "machine": plain, "packages": versions, "commands": to_plain(checks)})
    else:
        render.table("This machine", ("what", "value"), _machine_rows(machine))
        packages = [(name, machine.versions.get(name, "-")) for name in PACKAGES]
        render.table("\nPackages", ("package", "version"), packages)
        render.table("\nCommands", ("command", "can work", "missing"), [_check_row(check) for check in checks])
        _fixes(checks)
    if not checks[0].ok:
        raise typer.Exit(1)


def _machine_rows(machine: Machine) -> list[tuple[str, str]]:
    rows = [
        ("Python", machine.python),
        ("system", f"{machine.system}, {machine.arch}"),
        ("cores", f"{machine.cores} real, {machine.threads} threads"),
        ("memory", f"{_bytes(machine.available_bytes)} available of {_bytes(machine.total_bytes)}"),
        ("memory before any weight", _bytes(machine.runtime_bytes)),
        ("ONNX Runtime", machine.runtime_problem or ", ".join(machine.providers)),
        ("embedded bundle", machine.bundle_problem or "all files are as they were written"),
    ]
    rows += [("Jetson", machine.jetson)] if machine.jetson else []
    for gpu in machine.gpus:
        free, total = _bytes(gpu.free_bytes), _bytes(gpu.total_bytes)
        about = f"compute capability {gpu.compute_capability}, driver {gpu.driver}"
        rows.append(("GPU", f"{gpu.name}, {free} free of {total}, {about}"))
    return rows if machine.gpus else [*rows, ("GPU", machine.gpu_problem or "none of NVIDIA's")]


def _bytes(count: int | None) -> str:
    from vlm_edge.units import format_bytes

    return "unknown" if count is None else format_bytes(count)


def _check_row(check: Check) -> tuple[str, str, str]:
    return check.command, "yes" if check.ok else "no", ", ".join(check.missing) or "-"


def _fixes(checks: Sequence[Check]) -> None:
    """Each on a line of its own and not in a table, which would break it where it cannot be copied any more."""
    wanted_by: dict[str, list[str]] = {}
    for check in checks:
        if check.fix:
            wanted_by.setdefault(check.fix, []).append(check.command)
    if wanted_by:
        render.emit("\nWhat installs the rest", end="\n")
    for fix, commands in wanted_by.items():
        render.emit(f"{', '.join(commands)}: {fix}", end="\n")
