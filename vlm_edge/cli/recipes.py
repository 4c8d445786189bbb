"""vlm-edge recipes list|show|check|schema"""

from __future__ import annotations

from typing import Annotated

import typer

from vlm_edge.cli import render
from vlm_edge.cli.options import AsJson, recipe_names
from vlm_edge.cli.usage import PlainUsage, command_group

app = command_group(
    "recipes",
    "How models are packed for a budget: one YAML file each.\n\nExample: vlm-edge recipes show llava-1.5-7b",
)


Name = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="Name of a shipped recipe, or a file.", autocompletion=recipe_names, show_default=False
    ),
]
Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="RECIPE",
        help="Names or files; default: every shipped recipe.",
        autocompletion=recipe_names,
        show_default=False,
    ),
]


@app.command("list", cls=PlainUsage)
def list_recipes(as_json: AsJson = False) -> None:
    """Show the recipes that ship with vlm-edge; `plan` takes their names as MODEL.

    Example: vlm-edge recipes list
    """
    from vlm_edge.core.recipe import find_recipe, load_recipe, recipe_names

    found = [load_recipe(find_recipe(name)) for name in recipe_names()]
    if as_json:
        rows = [
            {
                "name": recipe.name,
                "family": recipe.family,
                "llm": recipe.packing.llm,
                "vision": recipe.packing.vision,
                "max_tiles": recipe.limits.max_tiles,
                "max_model_len": recipe.limits.max_model_len,
                "model": recipe.model.id if recipe.model else None,
                "parameters": (recipe.model.parameters or None) if recipe.model else None,
            }
            for recipe in found
        ]
        render.emit_json({"recipes": rows})
        return
    cells = [
        (r.name, r.family, r.packing.llm, r.packing.vision, str(r.limits.max_tiles), str(r.limits.max_model_len),
         r.model.id if r.model else "a checkpoint at hand")
        for r in found
    ]  # fmt: skip
    render.table("Recipes", ("name", "family", "LLM", "vision", "tiles", "context", "model"), cells)


@app.command("show", cls=PlainUsage)
def show_recipe(name: Name, as_json: AsJson = False) -> None:
    """Print a recipe's file, to read or to begin one's own with; --json prints it with every default filled in.

    Example: vlm-edge recipes show llava-1.5-7b > mine.yaml
    """
    from vlm_edge.core.load import read_text, to_plain
    from vlm_edge.core.recipe import find_recipe, load_recipe

    path = find_recipe(name)
    recipe = load_recipe(path)
    if as_json:
        render.emit_json(to_plain(recipe))
    else:
        render.emit(read_text(path).rstrip("\n"), end="\n")


@app.command("check", cls=PlainUsage)
def check_recipes(names: Names = None, as_json: AsJson = False) -> None:
    """Check recipes: every key known, every value possible, what the family allows, and a model's facts by planning it.

    Exit code 0: all are right; 1: one is not.

    Example: vlm-edge recipes check mine.yaml
    """
    from vlm_edge.core.recipe import recipe_names
    from vlm_edge.pipeline.planning.recipe_checks import check

    asked = names or recipe_names()
    with render.progress("recipes", len(asked)) as step:
        found = []
        for name in asked:
            found.append(check(name))
            step()
    good = all(each.ok for each in found)
    if as_json:
        rows = [{"name": c.name, "ok": c.ok, "problem": c.problem, "fix": c.fix, "about": c.about} for c in found]
        render.emit_json({"ok": good, "recipes": rows})
    else:
        cells = [(c.name, "yes" if c.ok else "no", c.about if c.ok else f"{c.problem}; fix: {c.fix}") for c in found]
        render.table("Recipes", ("name", "ok", "what it comes to"), cells)
    if not good:
        raise typer.Exit(1)


@app.command("schema", cls=PlainUsage)
def print_schema() -> None:
    """Print the JSON schema of recipes, with which an editor checks and completes them.

    Example: vlm-edge recipes schema > recipe.schema.json, and in the recipe's first line: # yaml-language-server:
    $schema=recipe.schema.json
    """
    import json

    from vlm_edge.core.recipe_schema import recipe_schema

    render.emit(json.dumps(recipe_schema(), indent=2), end="\n")
