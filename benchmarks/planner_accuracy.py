"""Planned against measured peaks on this CPU: the embedded bundle, and towers of six families with random weights.

python -m benchmarks.planner_accuracy --work FOLDER [--out benchmarks/results/planner_accuracy]

WORK holds the random checkpoints and their bundles (about 1 GiB) and is filled where it is empty, which takes minutes. --out
writes .md and .png. Each configuration is a process of its own: `vlm-edge plan BUNDLE --measure`.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.random_bundles import FAMILIES, bundle
from vlm_edge.pipeline.measure import measure
from vlm_edge.pipeline.plan import PlanOptions, make_report
from vlm_edge.units import MIB

FITTED_ON = (
    "constants were fitted on nano at 1322 x 1344 px, on two random decoders, on one view each of the llava, paligemma and "
    "internvl towers and on 1344 x 896 px of qwen2_5_vl's; the other rows were not used"
)
NANO = [
    (tiles, size) for tiles in (0, 2, 4, 6) for size in ("640x480", "2480x3508") if (tiles, size) != (0, "640x480")
]  # fmt: skip
TILED = (0, 1, 3, 7, 11)
FUSED = {"internvl"}
"""Families whose exported graph has MultiHeadAttention, which ONNX Runtime computes without a matrix of scores on a CPU."""
SIZES = {
    "llava_next": ("336x336", "640x480", "672x672", "1920x1080"),
    "internvl": ("448x448", "1344x896", "1920x1080", "2480x3508"),
    "paligemma": ("448x448", "2480x3508"),
    "idefics3": ("364x364", "1456x728", "1456x1456"),
    "qwen2_5_vl": ("448x448", "672x672", "896x672", "1120x840", "1176x840"),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One configuration: the highest phase as planned and as measured, bytes."""

    model: str
    setting: str
    planned: int
    measured: int

    @property
    def error(self) -> float:
        """Share by which the plan is over."""
        return self.planned / self.measured - 1


def configurations(work: Path, families: Sequence[str]) -> list[tuple[str, str, str, PlanOptions]]:
    """(model, setting, bundle, options) of every row."""
    rows = [
        ("nano", f"{tiles} tiles, {size} px", "nano", PlanOptions(image_size=size, max_tiles=tiles))
        for tiles, size in NANO
    ]
    for family in families:
        root = str(bundle(work, family))
        for tiles in TILED if family == "llava" else ():
            options = PlanOptions(image_size="1920x1080", max_tiles=tiles, max_model_len=16384)
            rows.append((family, f"{tiles} tiles, 1920x1080 px", root, options))
        for size in SIZES.get(family, ()):
            kernel = "fused" if family in FUSED else "unfused"
            options = PlanOptions(image_size=size, max_model_len=16384, vision_attention=kernel)
            rows.append((family, f"{size} px" + (", fused kernel" if family in FUSED else ""), root, options))
    return rows


def measured(work: Path, families: Sequence[str]) -> list[Row]:
    """Plan and run every configuration; the peak of a run is its highest phase."""
    rows = []
    for model, setting, name, options in configurations(work, families):
        report = make_report(name, PlanOptions(**{**vars(options), "budget": "64GiB", "target": "cpu"}))
        found = measure(name, report)
        rows.append(
            Row(
                model,
                setting,
                max(m.planned_bytes for m in found.values()),
                max(m.measured_bytes for m in found.values()),
            )
        )
        print(f"{model}, {setting}: {100 * rows[-1].error:+.1f}%", flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """Markdown, with the machine and the sums."""
    errors = [row.error for row in rows]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("onnxruntime", "numpy", "pillow"))
    mean = sum(map(abs, errors)) / len(errors)
    lines = [
        "# Planned against measured peaks on a CPU", "",
        "`python -m benchmarks.planner_accuracy --work FOLDER --out benchmarks/results/planner_accuracy`", "",
        f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}, {versions}; resident memory at its most;",
        f"{FITTED_ON}. The towers have random weights and 6 layers; their bundles have no decoder, so its items are left out.", "",
        "| model | setting | planned MiB | measured MiB | error |", "| --- | --- | --- | --- | --- |",
    ]  # fmt: skip
    lines += [
        f"| {r.model} | {r.setting} | {r.planned / MIB:.0f} | {r.measured / MIB:.0f} | {100 * r.error:+.1f}% |"
        for r in rows
    ]
    lines += [
        "",
        f"{len(rows)} configurations: mean absolute error {100 * mean:.1f}%, most over {100 * max(errors):+.1f}%, "
        f"most under {100 * min(errors):+.1f}%.",
    ]
    return "\n".join(lines) + "\n"


def plot(rows: list[Row], path: Path) -> None:
    """Planned against measured, with the line on which they agree and 8% on both sides."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullFormatter

    figure = Figure(figsize=(6, 6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for model in dict.fromkeys(row.model for row in rows):
        own = [row for row in rows if row.model == model]
        axes.plot([r.measured / MIB for r in own], [r.planned / MIB for r in own], "o", label=model, alpha=0.8)
    ends = [min(r.measured for r in rows) / MIB * 0.9, max(r.measured for r in rows) / MIB * 1.1]
    axes.plot(ends, ends, color="#333333", linewidth=1)
    axes.fill_between(ends, [0.92 * e for e in ends], [1.08 * e for e in ends], color="#999999", alpha=0.25, label="8%")
    axes.set(xscale="log", yscale="log", xlabel="measured peak, MiB", ylabel="planned peak, MiB", xlim=ends, ylim=ends)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(FixedLocator([100, 200, 400, 800, 1600, 3200]))
        axis.set_major_formatter(FormatStrFormatter("%d"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, print, and write where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--families", default=",".join(FAMILIES), help="which towers to export and run")
    arguments = parser.parse_args()
    rows = measured(arguments.work, [name for name in arguments.families.split(",") if name])
    text = table(rows)
    print(text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(text, "utf-8")
        plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
