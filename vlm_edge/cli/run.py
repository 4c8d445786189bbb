"""vlm-edge run IMAGE... QUESTION"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import (
    AsJson,
    Budget,
    BundleOption,
    Device,
    Keep,
    MaxNewTokens,
    MaxPixels,
    MaxTiles,
    Reduce,
    Saliency,
    SaliencyModel,
    Seed,
    Threads,
    Threshold,
    Tiling,
    Verify,
)
from vlm_edge.errors import BadInput

if TYPE_CHECKING:
    from vlm_edge.pipeline.answering.answer import Answer
    from vlm_edge.pipeline.answering.options import AskOptions
    from vlm_edge.pipeline.answering.run import Pipeline

_CLIPPED = " (clipped: the model named a place outside of what it saw)"
EXAMPLE = 'vlm-edge run page.png "what is the total?" --explain seen.png'

Inputs = Annotated[
    list[str],
    typer.Argument(
        metavar="IMAGE... QUESTION", help="Image files, or - for standard input; then the question.", show_default=False
    ),
]
RecipeFile = Annotated[
    str | None,
    typer.Option(
        "--recipe", metavar="FILE", help="Ask as this recipe says where no option says otherwise.", show_default=False
    ),
]
Temperature = Annotated[float, typer.Option(help="0 is greedy; higher is more random.")]
TopP = Annotated[float, typer.Option(help="Sample from the likeliest tokens that reach this probability.")]
Stop = Annotated[
    list[str] | None, typer.Option(help="Stop before this text; may be given several times.", show_default=False)
]
Context = Annotated[
    Path | None,
    typer.Option(help="Text file that stands before the question; summarised where it is long.", show_default=False),
]
ContextBudget = Annotated[
    int | None,
    typer.Option(
        help="Tokens that the text may take; default 2048, or half of what a short context has free.",
        show_default=False,
    ),
]
Explain = Annotated[
    Path | None,
    typer.Option(help="Draw tiles, merged tokens and boxes to this .png or .html.", show_default=False),
]


def run(
    inputs: Inputs,
    bundle: BundleOption = None,
    recipe: RecipeFile = None,
    budget: Budget = None,
    max_tiles: MaxTiles = None,
    tiling: Tiling = None,
    saliency: Saliency = None,
    saliency_model: SaliencyModel = None,
    reduce: Reduce = None,
    keep: Keep = None,
    threshold: Threshold = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    stop: Stop = None,
    seed: Seed = 0,
    device: Device = "auto",
    threads: Threads = None,
    max_pixels: MaxPixels = None,
    verify: Verify = False,
    context: Context = None,
    context_budget: ContextBudget = None,
    explain: Explain = None,
    as_json: AsJson = False,
) -> None:
    """Answer a question about an image, reading it through one global view and the tiles that hold detail.

    Example: vlm-edge run page.png "what is the total?" --explain seen.png
    """
    if len(inputs) < 2:
        raise BadInput("an image and a question are needed", remedy=EXAMPLE)
    *images, question = inputs
    if "-" in images and sys.stdin is None:
        raise BadInput("standard input is closed, and - reads the image from it", remedy="send it there: < page.png")
    from vlm_edge.pipeline.answering.long_text import read_context
    from vlm_edge.pipeline.answering.options import AskOptions

    if context is None and context_budget is not None:
        raise BadInput("--context-budget is of --context, which is not given", remedy="name a text file with --context")
    text = None if context is None else read_context(context)
    options = AskOptions(
        tiling=tiling, max_tiles=max_tiles, reduce=reduce, keep=keep, threshold=threshold, max_new_tokens=max_new_tokens,
        temperature=temperature, top_p=top_p, stop=tuple(stop or ()), seed=seed, max_pixels=max_pixels,
        saliency=saliency, saliency_model=saliency_model,
    )  # fmt: skip
    if explain is not None:
        from vlm_edge.pipeline.explaining.explain import check_target

        check_target(explain, images)
    from vlm_edge.pipeline.answering.preflight import find_bundle, preflight
    from vlm_edge.pipeline.answering.run import Pipeline

    opened = find_bundle(bundle)
    if recipe is not None:
        from vlm_edge.core.recipe import find_recipe, load_recipe
        from vlm_edge.pipeline.answering.recipe_options import with_recipe

        options = with_recipe(options, load_recipe(find_recipe(recipe)), opened)
    fitted = preflight(opened, images, options, budget, device=device, again=text is not None)
    options = fitted.options
    if fitted.note:
        render.note(fitted.note)
    pipeline = Pipeline.load(opened, device=device, threads=threads, budget=budget, verify=verify)
    asked, about = question, dict[str, Any]()
    if text is not None:
        asked, about = _with_context(pipeline, images, question, text, options, context_budget)
    answer = pipeline.ask(images, asked, options, on_text=None if as_json else render.emit)
    if as_json:
        named = {"context": {"file": str(context), **about}} if about else {}
        render.emit_json(answer.to_json() | fitted.to_json() | named)
    else:
        render.emit("", end="\n")
        _summary(answer)
    if explain is not None:
        from vlm_edge.pipeline.explaining.explain import explain_answer

        explain_answer(images[0], answer, explain, geometry=pipeline.bundle.manifest.model.geometry, question=question)


def _with_context(
    pipeline: Pipeline, images: Sequence[str], question: str, text: str, options: AskOptions, asked: int | None
) -> tuple[str, dict[str, Any]]:
    """The question behind the text, or behind its summary, and what became of it."""
    from vlm_edge.pipeline.answering.long_text import QUESTION, budget_for, condense

    length = pipeline.bundle.manifest.limits.max_model_len
    taken = pipeline.least_tokens(images, QUESTION.format(context="", question=question), options)
    budget = budget_for(asked, context=length, taken=taken)
    with render.layers("context", lines=False) as report:
        found = condense(
            text, question, pipeline, budget=budget, context=length,
            on_pass=lambda done, total, title: report(done, total, f"{title}: {done} of {total} parts"),
        )  # fmt: skip
    if found.rounds:
        cut = "; its end is missing" if found.cut else ""
        render.note(f"the text was summarised to {found.tokens_in_prompt} tokens in {found.calls} passes{cut}")
    return QUESTION.format(context=found.text, question=question), found.to_json()


def _summary(answer: Answer) -> None:
    """On stderr: pixels of boxes, tokens and times."""
    for item in answer.boxes:
        render.note(f"box in pixels: {', '.join(str(v) for v in item.box)}{_CLIPPED * item.clipped}")
    for place in answer.points:
        render.note(f"point in pixels: {', '.join(str(v) for v in place.point)}{_CLIPPED * place.clipped}")
    times, tokens = answer.timings_ms, answer.tokens
    render.detail(
        f"{len(answer.tiles)} tiles, {tokens.visual_before} -> {tokens.visual_after} visual tokens, "
        f"{tokens.prompt} in the prompt, {tokens.generated} generated ({answer.stop_reason})"
    )
    render.detail(", ".join(f"{name} {value:.0f} ms" for name, value in times.items()))
