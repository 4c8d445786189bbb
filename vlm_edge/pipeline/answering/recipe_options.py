"""From a way of asking to a recipe, and from a recipe back to options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vlm_edge.core.bundle import Bundle, RunDefaults
from vlm_edge.core.load import to_plain
from vlm_edge.core.recipe import LLM_WEIGHTS, VISION_WEIGHTS, Packing, Recipe
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.options import READ_BY, AskOptions, Look
from vlm_edge.pipeline.written import written


def recipe_of(bundle: Bundle, look: Look, name: str) -> Recipe:
    """A bundle's own recipe with a Look as its defaults; what the Look does not read stays as the bundle has it.

    `limits.max_tiles` is the Look's number of tiles, unless it shows none.
    """
    manifest = bundle.manifest
    own, defaults = manifest.recipe, manifest.defaults
    tokens = own.get("view_tokens", ())
    return Recipe(
        name=name,
        family=manifest.model.family,
        limits=replace(manifest.limits, max_tiles=look.max_tiles or manifest.limits.max_tiles),
        defaults=RunDefaults(
            tiling=look.tiling,
            reduce=look.reduce,
            threshold=look.threshold if look.reduce in READ_BY["threshold"] else defaults.threshold,
            keep=look.keep if look.reduce in READ_BY["keep"] else defaults.keep,
            max_new_tokens=defaults.max_new_tokens,
            saliency=look.saliency or defaults.saliency,
        ),
        packing=_packing(bundle),
        view_tokens=tuple(tokens),
        join_rows=own.get("join_rows") is True,
    )


def _packing(bundle: Bundle) -> Packing:
    """As the bundle's recipe says, else as its files are."""
    own = bundle.manifest.recipe.get("packing", {})
    dtypes = {artifact.role: artifact.dtype for artifact in bundle.manifest.artifacts}
    usual = Packing()
    llm, vision = own.get("llm", dtypes.get("llm.graph")), own.get("vision", dtypes.get("vision.graph"))
    return Packing(
        llm=llm if llm in LLM_WEIGHTS else usual.llm,
        vision=vision if vision in VISION_WEIGHTS else usual.vision,
        group_size=own.get("group_size", usual.group_size),
        lm_head=own.get("lm_head", usual.lm_head),
        kv_cache=own.get("kv_cache", usual.kv_cache),
    )


def write_recipe(recipe: Recipe, path: Path, remarks: Sequence[str] = ()) -> None:
    """As YAML, behind remarks of one line each; raises BadInput where it cannot be written."""
    import yaml

    head = "".join(f"# {' '.join(line.split())}\n" for line in remarks)
    body = yaml.safe_dump(to_plain(recipe), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)
    with written(path) as stream:
        stream.write((head + body).encode())


def with_recipe(options: AskOptions, recipe: Recipe, bundle: Bundle) -> AskOptions:
    """A recipe's way of asking wherever the options leave it open.

    Raises BadInput for a recipe of another family, or one with more tiles than the bundle was planned for.
    """
    if recipe.family != bundle.manifest.model.family:
        raise BadInput(
            f"recipe {recipe.name} is for the family {recipe.family}, the bundle's is {bundle.manifest.model.family}",
            remedy="use a recipe that was made for this bundle",
        )
    defaults, limit = recipe.defaults, bundle.manifest.limits.max_tiles
    tiling = options.tiling or ("auto" if options.chooses_tiles else defaults.tiling)
    tiles = options.max_tiles
    if tiles is None and tiling == defaults.tiling != "none":
        if recipe.limits.max_tiles > limit:
            raise BadInput(
                f"recipe {recipe.name} shows {recipe.limits.max_tiles} tiles; this bundle was planned for {limit}",
                remedy=f"add --max-tiles {limit}",
            )
        tiles = recipe.limits.max_tiles
    by_recipe = defaults.saliency if tiling == "auto" and options.saliency_model is None else None
    return replace(
        options,
        tiling=tiling,
        max_tiles=tiles,
        saliency=options.saliency or by_recipe,
        reduce=options.reduce or defaults.reduce,
        keep=defaults.keep if options.keep is None else options.keep,
        threshold=defaults.threshold if options.threshold is None else options.threshold,
        max_new_tokens=options.max_new_tokens or defaults.max_new_tokens,
    )
