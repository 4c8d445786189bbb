"""Before `build` reads a weight: whether it can be done at all, and which of its steps an earlier run has finished."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlm_edge.backends.onnx.decoder import require_builder
from vlm_edge.core import discover, host
from vlm_edge.core.bundle import MANIFEST
from vlm_edge.core.bundle_writer import present
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.core.device import load_profile
from vlm_edge.core.recipe import Recipe
from vlm_edge.errors import BadInput, DamagedBundle, DoesNotFit
from vlm_edge.models.bundle_files import open_tokenizer
from vlm_edge.models.subjects import subject_from
from vlm_edge.pipeline.answering.options import CNN
from vlm_edge.pipeline.answering.question_plan import NO_LIMIT
from vlm_edge.pipeline.building.plan import Effort, check_steps, run_report, step_plans
from vlm_edge.pipeline.building.record import RECORD, BuildRecord, read_record, still_there
from vlm_edge.pipeline.building.steps import BuildOptions, Job, Step, as_recipe, existing, quantize_options, steps_of
from vlm_edge.pipeline.exporting.llm import check_decoder, check_text
from vlm_edge.pipeline.exporting.source import located, of_checkpoint
from vlm_edge.pipeline.exporting.tools import require_build_tools
from vlm_edge.pipeline.planning.inputs import Planned, check_family, find_model, with_recipe
from vlm_edge.pipeline.planning.plan import Report
from vlm_edge.pipeline.planning.recipe_checks import check_words
from vlm_edge.pipeline.quantizing.quantize import calibration_path, check_options, seqlen_of
from vlm_edge.quant.calibrate import read_samples
from vlm_edge.units import format_pair

TARGETS = ("cpu", "cuda")


def check_asked(recipe: Recipe, options: BuildOptions) -> None:
    """Raise BadInput for what is wrong whatever the model is."""
    check_words(recipe)
    packing, target = recipe.packing, options.target
    if target not in TARGETS:
        raise BadInput(f"--target {target} is not supported", remedy=f"use one of {', '.join(TARGETS)}")
    if options.device is not None and (other := load_profile(options.device).target) != target:
        raise BadInput(f"{options.device} runs what is built for {other}", remedy=f"add --target {other}")
    if packing.llm == "int8":
        raise BadInput("no int8 decoder can be built", remedy="let the recipe say packing.llm: int4, fp16 or fp32")
    if packing.vision == "int8" and target != "cpu":
        raise BadInput(f"8-bit towers are for the CPU, not for {target}", remedy="let it say packing.vision: fp16")
    if recipe.defaults.saliency == CNN:
        raise BadInput("a checkpoint brings no network for --saliency cnn", remedy="let defaults.saliency be detail")
    check_options(quantize_options(recipe, options, options.max_memory_bytes))


def memory_limit(options: BuildOptions) -> int:
    """Bytes that a step may hold: what was asked for; else what is free, and what this process holds already."""
    if options.max_memory_bytes is not None:
        return options.max_memory_bytes
    free = host.usable_bytes()
    return NO_LIMIT if free is None else free + host.kept_bytes()


def find_job(
    model: str | os.PathLike[str], out: Path, recipe: Recipe, options: BuildOptions, *,
    limit_bytes: int, command: str, on_step: Callable[[str], None],
) -> Job:  # fmt: skip
    """Open MODEL; of a model of the hub, plan every step before its weights come.

    Raises BadInput, and DoesNotFit as `fit` and `check_steps` do.
    """

    def accept(config: Mapping[str, Any]) -> None:
        check_family(recipe, discover.family_of(config).name, str(model))
        subject = subject_from(recipe.name, config)
        positions = subject.text.max_positions
        if recipe.limits.max_model_len > positions:
            raise BadInput(
                f"the recipe's limits.max_model_len is {recipe.limits.max_model_len}; the decoder has {positions} positions",
                remedy=f"let it say {positions} or less",
            )
        packed = with_recipe(Planned(subject, "config"), recipe)
        effort = _effort(recipe, options, positions)
        fit(packed, recipe, effort, options, limit_bytes)
        if not (out / RECORD).is_file():
            check_steps(step_plans(packed, recipe, effort), limit_bytes)

    root, origin = located(
        model, revision=options.revision, offline=options.offline, on_step=on_step, bars=options.bars, accept=accept
    )
    checkpoint = open_checkpoint(root)
    if not origin:
        accept(checkpoint.config)
    if out.resolve() == root.resolve():
        raise BadInput(f"{out} is the checkpoint itself", remedy="name another folder for the bundle")
    source = of_checkpoint(checkpoint, origin)
    _check_markers(recipe, root)
    effort = _effort(recipe, options, source.spec.text.max_positions)
    calibrates = recipe.packing.llm == "int4" and (options.method == "awq" or recipe.packing.kv_cache != "auto")
    path = calibration_path(quantize_options(recipe, options, None))
    samples = read_samples(path, limit=options.samples) if calibrates else ()
    return Job(source, out, recipe, options, replace(effort, samples=len(samples)), samples, limit_bytes, command)


def _check_markers(recipe: Recipe, root: Path) -> None:
    """Raise BadInput for tokens before views that the checkpoint's tokenizer does not have."""
    if recipe.view_tokens:
        tokenizer = open_tokenizer(root / "tokenizer.json")
        for token in recipe.view_tokens:
            if tokenizer.token_to_id(token) is None:
                raise BadInput(f"the tokenizer has no token {token[:60]!r}", remedy="correct the recipe's view_tokens")


def _effort(recipe: Recipe, options: BuildOptions, context: int) -> Effort:
    seqlen = seqlen_of(quantize_options(recipe, options, None), context)
    # what a run holds is measured where this machine can run it and tells a process its own peak
    measured = options.measure and options.target == "cpu" and Path("/proc/self/clear_refs").exists()
    return Effort(options.target, options.method, options.samples, seqlen, options.image_size, measured)


def packed_model(job: Job) -> Planned:
    """The checkpoint as the recipe packs it, for planning."""
    return with_recipe(find_model(str(job.source.checkpoint.root)), job.recipe)


def fit(model: Planned, recipe: Recipe, effort: Effort, options: BuildOptions, limit_bytes: int) -> Report:
    """The plan of the finished bundle; raises DoesNotFit where it is too large for the device or budget that was named."""
    named = options.device is not None or options.budget is not None
    budget = options.budget if named else f"{limit_bytes}B"
    report = run_report(model, recipe, effort, device=options.device, budget=budget)
    plan = report.plan
    if named and not plan.fits:
        where = report.device.title if report.device else "the budget"
        helps = [advice.change for advice in report.advice if advice.fits]
        peak, usable = format_pair(plan.peak_bytes, plan.budget_bytes)
        raise DoesNotFit(
            f"the bundle would not fit {where}: {plan.peak_phase} needs {peak} of {usable}",
            remedy=f"change the recipe; this would do: {helps[0]}"
            if helps
            else "use a smaller model or a larger device",
        )
    return report


def unfinished(job: Job) -> tuple[BuildRecord, tuple[Step, ...]]:
    """What was done before, and the steps that are to be done now.

    With `force` that is all of them, and a damaged bundle of this model that `build` made is begun anew.  Raises BadInput where
    OUT holds something else, DamagedBundle.
    """
    source, out = job.source, job.out
    old = read_record(out, source.hashes)
    try:
        present(out, source.hashes, source.name)
    except DamagedBundle as cause:
        if old is None:
            raise
        if not job.options.force:
            raise DamagedBundle(cause.message, remedy="build it again with --force") from cause
        _forget(out)
    bundle = existing(out)
    record = BuildRecord(dict(source.hashes), job.recipe.name) if old is None else old
    if job.options.force or old is None or bundle is None:
        return record, steps_of(job.recipe, job.effort)
    changed = as_recipe(bundle.manifest, job.recipe) != bundle.manifest
    todo: list[Step] = []
    for step in steps_of(job.recipe, job.effort):
        done = record.steps.get(step.name)
        if done is None or done.inputs != step.inputs(job):
            again = True
        elif step.reads_bundle:
            again = changed or bool(todo)
        else:
            again = not still_there(done, bundle)
        if again:
            todo.append(step)
    return replace(record, recipe=job.recipe.name), tuple(todo)


def _forget(out: Path) -> None:
    """Without its manifest a folder is an unfinished bundle, which every step may go on with."""
    try:
        (out / MANIFEST).unlink()
    except OSError as cause:
        raise BadInput(f"{out / MANIFEST} cannot be removed: {cause}", remedy="check its permissions") from cause


def check_tools(job: Job) -> None:
    """Raise MissingDependency, or BadInput for a decoder that no graph can be made of, before the first step of work."""
    require_build_tools("build")
    if job.recipe.packing.llm == "int4":
        require_builder()
        check_text(job.source.spec.text, otherwise="vlm-edge export and quantize, which write the parts that can be")
    else:
        check_decoder(job.recipe.packing.llm, job.options.target, job.source.spec)
