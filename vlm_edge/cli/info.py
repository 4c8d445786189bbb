"""vlm-edge info [BUNDLE]"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson, BundleArgument

if TYPE_CHECKING:
    from vlm_edge.core.bundle import Manifest


def info(
    bundle: BundleArgument = None,
    as_json: AsJson = False,
) -> None:
    """Show what a bundle holds: model, limits, files, parity results and the tools that made it.

    Example: vlm-edge info out/
    """
    from vlm_edge.pipeline.answering.preflight import find_bundle

    opened = find_bundle(bundle)
    if as_json:
        render.emit_json(_to_json(opened.root, opened.manifest))
        return
    _show(opened.root, opened.manifest)


def _totals(manifest: Manifest) -> dict[str, int]:
    """Bytes by the first part of an artifact's role, `llm` or `vision`, and of all files."""
    totals: dict[str, int] = {}
    for artifact in manifest.artifacts:
        part = artifact.role.partition(".")[0] if "." in artifact.role else "other"
        totals[part] = totals.get(part, 0) + artifact.bytes
    return {**totals, "all": sum(totals.values())}


def _to_json(root: Path, manifest: Manifest) -> dict[str, Any]:
    from vlm_edge.core.load import to_plain

    plain: dict[str, Any] = to_plain(manifest)
    del plain["self_sha256"]
    return {
        **plain,
        "bundle": str(root),
        "totals_bytes": _totals(manifest),
        "tokens_per_view": manifest.model.geometry.tokens_per_view,
    }


def _show(root: Path, manifest: Manifest) -> None:
    from vlm_edge.core.load import to_plain
    from vlm_edge.units import format_bytes

    model = to_plain(manifest.model)
    about = [("name", manifest.name), ("folder", str(root)), ("family", manifest.model.family)]
    about += [(f"source {key}", value) for key, value in manifest.source.items()]
    about += [(part, _numbers(model[part])) for part in ("vision", "projector", "text", "geometry")]
    about += [("limits", _numbers(to_plain(manifest.limits))), ("defaults", _numbers(to_plain(manifest.defaults)))]
    about += [("made with", _numbers(manifest.tools))]
    render.table("Bundle", ("what", "value"), about)
    files = [(a.path, a.role, a.target, a.dtype or "-", format_bytes(a.bytes)) for a in manifest.artifacts]
    files += [("in all", name, "", "", format_bytes(size)) for name, size in _totals(manifest).items()]
    render.table("\nFiles", ("path", "role", "target", "dtype", "size"), files)
    parity = [
        (p.component, p.metric, f"{p.value:.3g}", f"{p.limit:.3g}", "yes" if p.ok else "no") for p in manifest.parity
    ]
    if parity:
        render.table("\nParity", ("component", "metric", "value", "limit", "ok"), parity)


def _numbers(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in values.items())


def _value(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
