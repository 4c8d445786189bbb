"""Options that several commands take, declared once, with the values that a shell may offer for them."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

DEVICES = ("auto", "cpu", "cuda", "tensorrt")


def _tilings() -> list[str]:
    from vlm_edge.core.manifest_checks import TILINGS  # when the shell asks, not when the program starts

    return list(TILINGS)


def _reductions() -> list[str]:
    from vlm_edge.core.manifest_checks import REDUCTIONS

    return list(REDUCTIONS)


def _saliencies() -> list[str]:
    from vlm_edge.core.manifest_checks import SALIENCIES

    return list(SALIENCIES)


def _devices() -> list[str]:
    return list(DEVICES)


def recipe_names() -> list[str]:
    """For completion: the recipes that ship."""
    from vlm_edge.core import recipe

    return recipe.recipe_names()


def profile_names() -> list[str]:
    """For completion: the device profiles that ship."""
    from vlm_edge.core import device

    return device.profile_names()


def _methods() -> list[str]:
    return ["awq", "rtn"]


def typed() -> str:
    """The command as it was typed, for reports that tell what made them."""
    return shlex.join(["vlm-edge", *sys.argv[1:]])


Tiling = Annotated[
    str | None,
    typer.Option(
        help="auto (salient tiles), grid (even tiles, or the model's own), or none (the whole image in one view).",
        show_default=False,
        autocompletion=_tilings,
    ),
]
MaxTiles = Annotated[int | None, typer.Option(help="Full-resolution tiles beside the global view.", show_default=False)]
Reduce = Annotated[
    str | None,
    typer.Option(
        help="Visual tokens: none, threshold, tome, landmark, divprune, cdpruner, random or downsample.",
        show_default=False,
        autocompletion=_reductions,
    ),
]
Saliency = Annotated[
    str | None,
    typer.Option(
        help="What tiles are chosen by: detail, cnn (a network) or novelty.",
        show_default=False,
        autocompletion=_saliencies,
    ),
]
SaliencyModel = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="ONNX network for --saliency cnn; default: the bundle's own.", show_default=False
    ),
]
Keep = Annotated[
    float | None, typer.Option(help="Share of each view's tokens that a reduction keeps.", show_default=False)
]
Threshold = Annotated[
    float | None, typer.Option(help="Cosine above which neighbouring tokens merge.", show_default=False)
]
MaxNewTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.", show_default=False)]
Seed = Annotated[int, typer.Option(help="Of sampling and of random reduction.")]
Device = Annotated[
    str,
    typer.Option(
        help="auto, cpu, cuda, or tensorrt (the vision encoder; the decoder on cuda).", autocompletion=_devices
    ),
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; default: one per real core.", show_default=False)]
MaxPixels = Annotated[
    int | None, typer.Option(help="Largest image, in pixels; default 400 million.", show_default=False)
]
Budget = Annotated[
    str | None,
    typer.Option(help="Memory that may be used, such as 8GiB; default: what is free now.", show_default=False),
]
Verify = Annotated[bool, typer.Option("--verify", help="Hash every file of the bundle again.")]
BundleOption = Annotated[
    Path | None,
    typer.Option("--bundle", help="Bundle folder; default: the embedded nano model.", show_default=False),
]
BundleArgument = Annotated[
    Path | None,
    typer.Argument(metavar="BUNDLE", help="Bundle folder; default: the embedded nano model.", show_default=False),
]
Checkpoint = Annotated[
    str, typer.Argument(metavar="MODEL", help="Checkpoint folder (config.json, tokenizer.json, safetensors) or hub id.")
]
Out = Annotated[Path, typer.Argument(metavar="OUT", help="Bundle folder, new or of the same model.")]
Method = Annotated[
    str, typer.Option(help="awq, or rtn: round to nearest, without calibration.", autocompletion=_methods)
]
Samples = Annotated[int, typer.Option(help="Calibration samples; a quarter of them is held out.")]
Seqlen = Annotated[
    int | None, typer.Option(help="Tokens of the longest sequence; default: 1024, or the context.", show_default=False)
]
Revision = Annotated[str, typer.Option(help="Branch, tag or commit of a model of the hub.", show_default=False)]
Offline = Annotated[bool, typer.Option("--offline", help="No network: only models that were downloaded before.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
