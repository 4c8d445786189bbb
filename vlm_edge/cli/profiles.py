"""vlm-edge profiles list|show|check"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson, profile_names
from vlm_edge.cli.usage import PlainUsage, command_group
from vlm_edge.units import GIB, format_bytes

if TYPE_CHECKING:
    from vlm_edge.core.device import DeviceProfile

app = command_group(
    "profiles",
    "Devices that `plan` knows, each figure with its source.\n\nExample: vlm-edge profiles show rtx-4090",
)
_TERA = 10**12


Name = Annotated[
    str,
    typer.Argument(
        metavar="PROFILE",
        help="Name of a shipped profile, or a file.",
        autocompletion=profile_names,
        show_default=False,
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PROFILE",
        help="Names or files; default: every shipped profile.",
        autocompletion=profile_names,
        show_default=False,
    ),
]


@app.command("list", cls=PlainUsage)
def list_profiles(as_json: AsJson = False) -> None:
    """Show the devices that ship with vlm-edge; `plan --device` takes their names.

    Example: vlm-edge profiles list
    """
    from vlm_edge.core.device import load_profile, profile_names

    found = [load_profile(name) for name in profile_names()]
    if as_json:
        rows = [
            {
                "name": profile.name,
                "title": profile.title,
                "target": profile.target,
                "total_bytes": profile.total_bytes.value,
                "usable_bytes": profile.usable_bytes.value,
                "bandwidth_bytes_per_s": profile.bandwidth.value,
                "flops": {dtype: figure.value for dtype, figure in profile.flops.items()},
            }
            for profile in found
        ]
        render.emit_json({"profiles": rows})
        return
    cells = [(p.name, p.title, p.target, format_bytes(p.usable_bytes.value), _bandwidth(p), _fastest(p)) for p in found]
    render.table("Profiles", ("name", "device", "target", "usable", "bandwidth", "fastest arithmetic"), cells)


@app.command("show", cls=PlainUsage)
def show_profile(name: Name, as_json: AsJson = False) -> None:
    """Show a device's figures and where each comes from.

    Example: vlm-edge profiles show jetson-orin-nx-16gb
    """
    from vlm_edge.core.device import load_profile
    from vlm_edge.core.load import to_plain

    profile = load_profile(name)
    if as_json:
        render.emit_json(to_plain(profile))
        return
    render.table(f"{profile.title} ({profile.name}, {profile.target})", ("what", "value", "source"), _rows(profile))
    for note in profile.notes:
        render.emit(note, end="\n")


@app.command("check", cls=PlainUsage)
def check_profiles(names: Names = None, as_json: AsJson = False) -> None:
    """Check device profiles: every key known, every figure plausible and with a source.

    Exit code 0: all are right; 1: one is not.

    Example: vlm-edge profiles check mine.yaml
    """
    from vlm_edge.core.device import find_profile, load_profile, profile_names
    from vlm_edge.errors import BadInput

    rows = []
    for name in names or profile_names():
        if not (path := find_profile(name)).is_file():
            raise BadInput(f"{path} does not exist", remedy="name a file, or one that vlm-edge profiles list shows")
        problem = fix = ""
        try:
            load_profile(name)
        except BadInput as found:
            problem, fix = found.message, found.remedy
        rows.append({"name": name, "ok": not problem, "problem": problem, "fix": fix})
    good = all(row["ok"] for row in rows)
    if as_json:
        render.emit_json({"ok": good, "profiles": rows})
    else:
        cells = [(str(r["name"]), "yes" if r["ok"] else "no", "" if r["ok"] else f"{r['problem']}; fix: {r['fix']}")
                 for r in rows]  # fmt: skip
        render.table("Profiles", ("name", "ok", "what is wrong"), cells)
    if not good:
        raise typer.Exit(1)


def _rows(profile: DeviceProfile) -> list[tuple[str, str, str]]:
    rows = [
        ("total memory", format_bytes(profile.total_bytes.value), profile.total_bytes.source),
        ("usable memory", format_bytes(profile.usable_bytes.value), profile.usable_bytes.source),
        ("CPU and GPU share it", "yes" if profile.unified_memory else "no", ""),
        ("bandwidth", _bandwidth(profile), profile.bandwidth.source),
        *((f"{dtype} operations", _rate(figure.value), figure.source) for dtype, figure in profile.flops.items()),
        ("share of bandwidth in decode", str(profile.bandwidth_share.value), profile.bandwidth_share.source),
        ("share of arithmetic in prefill", str(profile.compute_share.value), profile.compute_share.source),
    ]
    if profile.encode_share is not None:
        rows.append(("share of arithmetic in encode", str(profile.encode_share.value), profile.encode_share.source))
    if profile.runtime_bytes is not None:
        rows.append(("context and libraries", format_bytes(profile.runtime_bytes.value), profile.runtime_bytes.source))
    if profile.compute_capability:
        rows.append(("compute capability", profile.compute_capability, ""))
    return rows


def _bandwidth(profile: DeviceProfile) -> str:
    return f"{profile.bandwidth.value / GIB:.0f} GiB/s"


def _rate(flops: int) -> str:
    tera = flops / _TERA
    return f"{tera:.0f} T/s" if tera >= 100 else f"{tera:.3g} T/s"


def _fastest(profile: DeviceProfile) -> str:
    dtype = max(profile.flops, key=lambda name: profile.flops[name].value)
    return f"{dtype} {_rate(profile.flops[dtype].value)}"
