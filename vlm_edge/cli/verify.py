"""vlm-edge verify BUNDLE [MODEL]"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson, Offline, Revision, Threads
from vlm_edge.errors import CheckFailed

if TYPE_CHECKING:
    from vlm_edge.pipeline.checking.checks import Check

WORDS = {True: "yes", False: "no", None: "not checked"}
HASH_CHARS = 64
Bundle = Annotated[str, typer.Argument(metavar="BUNDLE", help="Bundle folder, or nano for the embedded one.")]
Model = Annotated[
    str | None,
    typer.Argument(metavar="[MODEL]", help="Compare with this checkpoint through torch as well.", show_default=False),
]
Report = Annotated[bool, typer.Option("--report", help="Write reports/verify.json into the bundle.")]


def verify(
    bundle: Bundle,
    model: Model = None,
    report: Report = False,
    threads: Threads = None,
    revision: Revision = "",
    offline: Offline = False,
    as_json: AsJson = False,
) -> None:
    """Check that a bundle is what was written, and that its graphs compute what they should.

    Hashes and sizes, graphs that load, finite values, parity with the references that the bundle holds; what this machine
    cannot run is listed as not checked. Exit code 0: no check says no; 1: one does; 2: it could not be checked.

    Example: vlm-edge verify out/
    """
    from vlm_edge.pipeline.checking.verify import verify_bundle, write_report

    found = verify_bundle(
        bundle, model, revision=revision, offline=offline, bars=not render.VERBOSITY.quiet, threads=threads,
        on_step=render.note,
    )  # fmt: skip
    if report:
        render.note(f"wrote {write_report(found)}")
    if as_json:
        render.emit_json(found.to_json())
    else:
        rows = [
            (check.name, WORDS[check.ok], _value(check.value), _value(check.limit), check.note)
            for check in found.checks
        ]
        render.table(f"{found.name} in {found.root}", ("check", "ok", "value", "limit", "note"), rows)
    if found.failures:
        raise _failure(found.failures)


def _failure(failures: tuple[Check, ...]) -> CheckFailed:
    first = failures[0]
    more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
    why = f" ({first.note})" if first.note else ""
    return CheckFailed(
        f"the check of {first.name} says no{why}{more}",
        remedy="copy the bundle again from its source, or export the model again",
    )


def _value(value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return value[:12] if len(value) == HASH_CHARS else value
    return f"{value:.6g}"
