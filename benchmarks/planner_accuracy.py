"""Planned against measured peaks on this CPU: the embedded bundle, and towers of six families with random weights.

python -m benchmarks.planner_accuracy --work FOLDER [--out benchmarks/results/planner_accuracy]

WORK holds the random checkpoints and their bundles (about 1 GiB) and is filled where it is empty, which takes minutes. --out
writes .md and .png. Each configuration is a process of its own: `vlm-edge plan BUNDLE --measure`.
--large adds rows of bundles of published sizes, each FOLDER/NAME with NAME of LARGE, made beforehand:

python -m benchmarks.shapes make NAME CHECKPOINT; vlm-edge export CHECKPOINT FOLDER/NAME
vlm-edge quantize CHECKPOINT FOLDER/NAME --method rtn --target cpu
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from benchmarks.random_bundles import FAMILIES, bundle
from vlm_edge.pipeline.measuring.measure import measure
from vlm_edge.pipeline.planning.plan import PlanOptions, make_report
from vlm_edge.units import MIB

FITTED_ON = (
    "constants were fitted on the same bundles at other sizes and numbers of tiles (nano at 640 x 480, 1322 x 1344 and "
    "2000 x 1500 px, llava with 0, 3, 7 and 11, others at sizes that are not below), on two random decoders, and for "
    "packed weights on single products; of llava-1.1b and llava-1.5-7b one run each was looked at, with 1000 x 1000 px and a "
    "context of 640"
)
NANO = [(tiles, size) for tiles in (1, 3, 5) for size in ("800x600", "1600x2200")]
TILED = (1, 2, 5, 9)
LARGE = {
    "llava-1.1b": ((1, 2048), (2, 2048), (3, 4096), (5, 4096), (6, 4096)),
    "llava-1.5-7b": ((0, 1024), (1, 1536), (2, 2048)),
}
"""(tiles, context) of bundles with an fp32 tower and an int4 decoder of published sizes."""
FUSED = {"internvl"}
"""Families whose exported graph has MultiHeadAttention, which ONNX Runtime computes without a matrix of scores on a CPU."""
SIZES = {
    "llava_next": ("500x300", "300x1000", "1000x1000", "1600x1200"),
    "internvl": ("400x300", "900x900", "1800x600", "2000x1500"),
    "paligemma": ("300x300", "1000x2000"),
    "idefics3": ("1200x300", "600x800", "1400x1000"),
    "qwen2_5_vl": ("364x560", "560x560", "784x784", "980x700", "1120x980"),
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


def configurations(
    work: Path, families: Sequence[str], large: Path | None = None
) -> list[tuple[str, str, str, PlanOptions]]:
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
    if large is None:
        return rows
    for name, wanted in LARGE.items():
        for tiles, context in wanted:
            setting = f"{tiles} tiles, 2480x3508 px, context {context}"
            options = PlanOptions(image_size="2480x3508", max_tiles=tiles, max_model_len=context)
            rows.append((name, setting, str(large / name), options))
    return rows


def measured(work: Path, families: Sequence[str], large: Path | None = None) -> list[Row]:
    """Plan and run every configuration; the peak of a run is its highest phase."""
    rows = []
    for model, setting, name, options in configurations(work, families, large):
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
        f"{FITTED_ON}. Bundles of the six families have towers of random weights and 6 layers and no decoder, whose items",
        "are left out; llava-1.1b and llava-1.5-7b have an fp32 tower and an int4 decoder, random weights, and the whole context",
        "is prefilled.", "",
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
        axis.set_major_locator(FixedLocator([100, 200, 400, 800, 1600, 3200, 6400]))
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
    parser.add_argument("--large", type=Path, metavar="FOLDER", help="bundles of published sizes")
    arguments = parser.parse_args()
    rows = measured(arguments.work, [name for name in arguments.families.split(",") if name], arguments.large)
    text = table(rows)
    print(text)
    if arguments.out is not None:
        arguments.out.with_suffix(".md").write_text(text, "utf-8")
        plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
