"""MODEL of `vlm-edge plan`: a bundle, a checkpoint folder, a lone config.json, or a recipe by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_edge.core import discover
from vlm_edge.core.bundle import MANIFEST, open_bundle
from vlm_edge.core.checkpoint import CONFIG, INDEX, PREPROCESSOR, SINGLE, find_preprocessor, open_checkpoint
from vlm_edge.core.geometry import Geometry, TokenGeometry
from vlm_edge.core.load import read_text
from vlm_edge.core.recipe import Recipe, Watched, find_recipe, load_recipe, recipe_names
from vlm_edge.core.resources import nearest
from vlm_edge.core.shards import strict_json
from vlm_edge.core.specs import ModelSpec
from vlm_edge.errors import BadInput
from vlm_edge.memory.plan import stored_bytes
from vlm_edge.memory.request import Subject
from vlm_edge.models.decoders import PLAIN_DECODERS
from vlm_edge.models.subjects import subject_from
from vlm_edge.pipeline.embedded import EMBEDDED, bundle_folder

WEIGHTS = {"int4": "awq", "int8": "int8", "fp16": "fp16", "fp32": "fp32"}
"""A recipe's word for the decoder's weights -> the planner's."""


@dataclass(frozen=True)
class Planned:
    """A model, and what its recipe or manifest says about running it.

    source: bundle, checkpoint, config or recipe.  tiles: beside a global view; None where the family has its own way.
    most_tiles: that may be shown, where a recipe or bundle says so.
    target: that the model is bound to.  max_model_len: None where nothing says so.  kv_cache: the decoder's, if not of its float
    type.  family: empty for a text model alone.
    """

    subject: Subject
    source: str
    tiles: int | None = None
    most_tiles: int | None = None
    max_model_len: int | None = None
    target: str | None = None
    weights: str = "awq"
    group_size: int = 128
    lm_head: str = "fp16"
    kv_cache: str = ""
    family: str = ""
    notes: tuple[str, ...] = ()


def find_model(name: str, *, recipe: str | None = None, target: str | None = None) -> Planned:
    """What `name` stands for; a file or folder goes before a recipe of that name, the embedded bundle before its recipe.

    recipe: a file, or the name of a recipe that ships, that says how the model is packed, a published one too.
    Raises BadInput, also for a recipe with a bundle, whose files are packed; or DamagedBundle.
    """
    path = Path(name)
    packing = None if recipe is None else load_recipe(find_recipe(recipe))
    if name == EMBEDDED or (path / MANIFEST).is_file():
        if packing is not None:
            raise BadInput(
                f"{name} is a bundle, and its files are packed already",
                remedy="leave --recipe out, or name a checkpoint",
            )
        return _bundle(bundle_folder(name), target)
    if path.is_dir():
        found = _folder(path)
    elif path.suffix == ".json":
        found = _config(path)
    elif name in recipe_names():
        found = of_recipe(load_recipe(find_recipe(name)))
    else:
        raise BadInput(f"there is no file, folder or recipe {name[:80]!r}", remedy=nearest(name, recipe_names()))
    return found if packing is None else with_recipe(found, packing)


def of_recipe(recipe: Recipe) -> Planned:
    """The published model that a recipe describes, packed as it says; raises BadInput where it describes none."""
    model = recipe.model
    if model is None:
        raise BadInput(
            f"recipe {recipe.name} has no model of its own",
            remedy=f"name a checkpoint, with --recipe {recipe.name}.yaml",
        )
    where = f"recipes/{recipe.name}.yaml: model"
    config, preprocessor = (
        Watched(model.config, f"{where}.config"),
        Watched(model.preprocessor, f"{where}.preprocessor"),
    )
    subject = subject_from(recipe.name, config, preprocessor, family=recipe.family)
    config.get("model_type")
    config.refuse_unread()
    preprocessor.refuse_unread()
    return with_recipe(Planned(subject, "recipe", family=recipe.family), recipe)


def with_recipe(found: Planned, recipe: Recipe) -> Planned:
    """A model as a recipe packs it; raises BadInput for a recipe of another family."""
    if found.family:
        check_family(recipe, found.family, found.subject.name)
    own_way = not found.subject.free_tiles
    return Planned(
        subject=found.subject,
        source=found.source,
        tiles=0 if recipe.defaults.tiling == "none" else None if own_way else recipe.limits.max_tiles,
        most_tiles=recipe.limits.max_tiles,
        max_model_len=recipe.limits.max_model_len,
        weights=WEIGHTS.get(recipe.packing.llm, "awq"),
        group_size=recipe.packing.group_size,
        lm_head=recipe.packing.lm_head,
        kv_cache="" if recipe.packing.kv_cache == "auto" else recipe.packing.kv_cache,
        family=found.family,
        notes=found.notes,
    )


def check_family(recipe: Recipe, family: str, model: str) -> None:
    """Raise BadInput for a model that is not of the recipe's family."""
    if family != recipe.family:
        raise BadInput(
            f"the recipe {recipe.name} is for {recipe.family}, and {model} is of the family {family}",
            remedy="name a recipe of that family; vlm-edge recipes list shows them",
        )


def _bundle(root: Path, target: str | None) -> Planned:
    bundle = open_bundle(root)
    manifest = bundle.manifest
    targets = sorted({a.target for a in manifest.artifacts if a.role.endswith(".graph") and a.target != "any"})
    if target is not None and target not in targets:
        raise BadInput(
            f"bundle {manifest.name} holds nothing for {target}",
            remedy=f"use --target {targets[0] if targets else 'cpu'}, and no --device that is for another",
        )
    chosen = target or ("cpu" if "cpu" in targets or not targets else targets[0])
    spec, stored = manifest.model, stored_bytes(bundle.bytes_by_role(chosen))
    geometry = _own_geometry(root, spec)
    family = discover.family(spec.family)
    free_tiles = family.free_tiles
    # a manifest that knows one nominal view alone says `none`, and no tiles, for want of anything else
    known = geometry == spec.geometry
    whole = manifest.defaults.tiling == "none" and known
    notes = () if "llm.weights" in stored else ("the bundle has no decoder yet: its weights are computed",)
    return Planned(
        subject=Subject(
            manifest.name, spec.text, spec.vision, spec.projector, geometry, stored, free_tiles, family.chosen_tiles
        ),
        source="bundle",
        tiles=0 if whole else manifest.limits.max_tiles if free_tiles else None,
        most_tiles=manifest.limits.max_tiles if known else None,
        max_model_len=manifest.limits.max_model_len,
        target="cuda" if chosen == "cuda" else "cpu",
        kv_cache=manifest.kv_cache(chosen),
        notes=notes,
    )


def _own_geometry(root: Path, spec: ModelSpec) -> Geometry:
    """How the family cuts images by the bundle's own files, where its manifest knows one view alone."""
    files = root / CONFIG, root / PREPROCESSOR
    if type(spec.geometry) is not TokenGeometry or not all(path.is_file() for path in files):
        return spec.geometry
    cut = subject_from(spec.family, _object(files[0]), _object(files[1]), family=spec.family).geometry
    # of one view the manifest knows more: the markers that its recipe puts before views
    return spec.geometry if cut is None or type(cut) is TokenGeometry else cut


def _folder(root: Path) -> Planned:
    if not ((root / SINGLE).is_file() or (root / INDEX).is_file()):
        return _config(root / CONFIG)
    checkpoint = open_checkpoint(root)
    preprocessor, notes = _beside(root)
    tensors = checkpoint.tensors.values()
    subject = subject_from(root.resolve().name, checkpoint.config, preprocessor, tensors=tensors)
    return Planned(subject, "checkpoint", family=_family(checkpoint.config), notes=notes)


def _config(path: Path) -> Planned:
    if not path.is_file():
        raise BadInput(f"{path} does not exist", remedy="name a config.json, a checkpoint folder, a bundle or a recipe")
    config = _object(path)
    preprocessor, notes = _beside(path.parent)
    subject = subject_from(path.resolve().parent.name, config, preprocessor)
    return Planned(subject, "config", family=_family(config), notes=notes)


def _family(config: Mapping[str, Any]) -> str:
    return "" if config.get("model_type") in PLAIN_DECODERS else discover.family_of(config).name


def _beside(root: Path) -> tuple[Mapping[str, Any] | None, tuple[str, ...]]:
    """What lies there about images; else a note that its values are taken for granted."""
    found = find_preprocessor(root)
    if found is not None:
        return found, ()
    return None, (f"there is no {PREPROCESSOR}: images are cut as the family's checkpoints usually do",)


def _object(path: Path) -> dict[str, Any]:
    found = strict_json(read_text(path), str(path))
    if not isinstance(found, dict):
        raise BadInput(f"{path} is no JSON object", remedy=f"name a checkpoint's {CONFIG}")
    return found
