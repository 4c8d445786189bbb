"""Mutated inputs of every kind that the program reads: no traceback, no hang, no memory beyond the plan.

python -m benchmarks.campaign.inputs [--count 20000] [--seed 0] [--kind images ...]

Each attempt changes a good file and gives it to the functions that the commands give it to, in a forked child with an alarm after
ten seconds of processor time; benchmarks/campaign/forked.py judges. An image may take the memory that its header's plan says;
everything else REST_BYTES. Faults are printed with the seed that makes them again; figures go to benchmarks/results/campaign.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from benchmarks.campaign import forked, mutants, report
from tests.core.test_bundle_fuzz import seal
from tests.pipeline.answering.test_hostile_bundles import reseal
from tests.vision import test_sources_fuzz as pictures
from vlm_edge.core import discover
from vlm_edge.core.bundle import open_bundle
from vlm_edge.core.checkpoint import open_checkpoint
from vlm_edge.core.recipe import load_recipe, recipe_names
from vlm_edge.core.resources import resource_dir
from vlm_edge.core.shards import read_tensor
from vlm_edge.errors import BadInput, VlmEdgeError
from vlm_edge.memory.formulas import image_decode_bytes
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import preflight
from vlm_edge.pipeline.answering.run import Pipeline
from vlm_edge.pipeline.batch_inference.input import BatchInput
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.evaluating.rows import read_rows
from vlm_edge.pipeline.planning.plan import PlanOptions, make_report
from vlm_edge.pipeline.planning.recipe_checks import check
from vlm_edge.quant.calibrate import read_samples
from vlm_edge.vision.sources import load_image, load_reduced, probe

SHARES = {
    "images": 0.25, "manifests": 0.15, "configs": 0.175, "safetensors": 0.125, "tokenizers": 0.075, "templates": 0.075,
    "lines": 0.1, "recipes": 0.05,
}  # fmt: skip
"""Of all inputs, by kind."""
MIB = 1 << 20
REST_BYTES, MARGIN_BYTES = 64 * MIB, 24 * MIB
MAX_PIXELS = 8_000_000
QUESTION = "what is the total?"
BUDGET = "1GiB"
ASKED_EVERY = 25
"""Of the images and manifests that are accepted, one in so many is asked about with the whole pipeline."""
MEMORY = Path("/dev/shm")
"""Where files wait for no disk."""
Make = Callable[[Path], forked.Attempt]


def images(_folder: Path) -> forked.Attempt:
    """25 formats: the header, the pixels at both scales, and for some an answer."""
    seeds = [make() for make in pictures.SEEDS.values()]
    pipeline = Pipeline.load(device="cpu", threads=1)

    def attempt(rng: random.Random) -> int:
        data = pictures.mutated(rng.choice(seeds), rng)
        header = probe(data, max_pixels=MAX_PIXELS)
        allowed = MARGIN_BYTES + image_decode_bytes(
            pixels=header.width * header.height, file_format=header.format, reduction=1, progressive=header.progressive
        )
        try:
            loaded = load_image(data, max_pixels=MAX_PIXELS)
            load_reduced(data, at_least_px=8, max_pixels=MAX_PIXELS)
            if rng.random() < 1 / ASKED_EVERY and loaded.width * loaded.height < 1 << 20:
                pipeline.ask(data, QUESTION, AskOptions(max_new_tokens=2, max_pixels=MAX_PIXELS))
                allowed += REST_BYTES
        except VlmEdgeError as refusal:
            refusal.allowed_bytes = allowed  # type: ignore[attr-defined]
            raise
        return allowed

    return attempt


def manifests(folder: Path) -> forked.Attempt:
    """As they are, and with a hash that fits again, as an attacker would have it."""
    root = copy_of_nano(folder)
    original = (root / "manifest.json").read_bytes()
    image = np.full((120, 150, 3), 255, np.uint8)

    def attempt(rng: random.Random) -> int:
        mutated = mutants.text(original, rng)
        (root / "manifest.json").write_bytes(seal(mutated) if rng.random() < 0.7 else mutated)
        bundle = open_bundle(root)
        preflight(bundle, [image], AskOptions(), BUDGET)
        make_report(str(root), PlanOptions(budget=BUDGET))
        if rng.random() < 1 / ASKED_EVERY:
            pipeline = Pipeline.load(root, device="cpu", threads=1, budget=BUDGET)
            pipeline.ask(image, QUESTION, AskOptions(max_new_tokens=2))
            return 1 << 30
        return REST_BYTES

    return attempt


def configs(folder: Path) -> forked.Attempt:
    """config.json and preprocessor_config.json of every published model, planned."""
    recipes = [load_recipe(resource_dir("recipes") / f"{name}.yaml") for name in recipe_names()]
    models = [recipe.model for recipe in recipes if recipe.model is not None]
    files = folder / "config.json", folder / "preprocessor_config.json"

    def attempt(rng: random.Random) -> int:
        model = rng.choice(models)
        which = rng.random() < 0.75
        for path, content, changed in zip(files, (model.config, model.preprocessor), (which, not which), strict=True):
            whole = json.dumps(dict(content)).encode()
            how = mutants.plain if rng.random() < 0.7 else None
            path.write_bytes((how(content, rng) if how else mutants.text(whole, rng)) if changed else whole)
        make_report(str(files[0]), PlanOptions(budget="24GiB", target=rng.choice(("cpu", "cuda"))))
        return REST_BYTES

    return attempt


def safetensors(folder: Path) -> forked.Attempt:
    """A checkpoint's header, and every tensor that it then tells of."""
    header = {
        f"model.layers.{i}.{name}": {"dtype": kind, "shape": [4, 8], "data_offsets": [64 * place, 64 * place + 64]}
        for place, (i, name, kind) in enumerate([(0, "q", "F16"), (0, "k", "BF16"), (1, "q", "I16"), (1, "k", "F16")])
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    whole = struct.pack("<Q", len(text)) + text + bytes(range(256))
    (folder / "config.json").write_text('{"model_type": "llava"}')

    def attempt(rng: random.Random) -> int:
        (folder / "model.safetensors").write_bytes(mutants.safetensors(whole, rng))
        for tensor in open_checkpoint(folder).tensors.values():
            read_tensor(tensor)
        return REST_BYTES

    return attempt


def tokenizers(folder: Path) -> forked.Attempt:
    """tokenizer.json, tokenizer_config.json and generation_config.json of a bundle whose hashes all fit."""
    return _of_bundle(folder, ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"))


def templates(folder: Path) -> forked.Attempt:
    """The chat template likewise: a program in somebody else's file."""
    return _of_bundle(folder, ("chat_template.jinja",))


def _of_bundle(folder: Path, names: tuple[str, ...]) -> forked.Attempt:
    root = copy_of_nano(folder)
    originals = {name: (root / name).read_bytes() for name in names}

    def attempt(rng: random.Random) -> int:
        name = rng.choice(names)
        for other, content in originals.items():
            (root / other).write_bytes(content)
        if name.endswith(".jinja"):
            mutated = mutants.lines(originals[name].replace(b"%}", b"%}\n"), rng, mutants.JINJA)
        else:
            mutated = mutants.text(originals[name], rng)
        (root / name).write_bytes(mutated)
        bundle = open_bundle(reseal(root))
        prompt = discover.family(bundle.manifest.model.family).prompt(bundle)
        layout = bundle.manifest.model.geometry.layout((150, 120))
        prompt.text.decode(prompt.tokens(QUESTION, [layout])[:8])
        prompt.text.embed(prompt.text.encode(QUESTION))
        return REST_BYTES

    return attempt


def lines(folder: Path) -> forked.Attempt:
    """JSON Lines of batch, eval and quantize."""
    (folder / "a.png").write_bytes(next(iter(pictures.SEEDS.values()))())
    row = {"image": "a.png", "question": QUESTION, "id": "7"}
    kinds = (
        (row, lambda path: list(BatchInput(path))),
        ({**row, "answer": "12", "task": "read", "tiles": [[0, 0, 9, 9]]}, lambda path: read_rows(path)),
        ({"image": "a.png", "text": QUESTION, "answer": "12"}, lambda path: read_samples(path, limit=32)),
    )
    odd = ('{"image": 1}', "[]", "null", '"', '{"question": "\\ud800"}', '{"image": "../a.png", "question": ""}', "{}")

    def attempt(rng: random.Random) -> int:
        content, read = rng.choice(kinds)
        whole = b"\n".join(
            json.dumps({**content, "answer": str(i)} if "answer" in content else content).encode() for i in range(4)
        )
        path = folder / "rows.jsonl"
        path.write_bytes(mutants.lines(whole, rng, odd))
        read(path)
        return REST_BYTES

    return attempt


def recipes(folder: Path) -> forked.Attempt:
    """Every shipped recipe, checked as `recipes check` does it."""
    paths = sorted(resource_dir("recipes").glob("*.yaml"))
    originals = {path.name: path.read_bytes() for path in paths}

    def attempt(rng: random.Random) -> int:
        name = rng.choice(sorted(originals))
        (folder / name).write_bytes(mutants.lines(originals[name], rng, mutants.YAML_LINES))
        found = check(str(folder / name))
        if not found.ok:
            raise BadInput(found.problem, remedy=found.fix)
        return REST_BYTES

    return attempt


def copy_of_nano(folder: Path) -> Path:
    """A bundle whose small files can be changed; the large ones are links to the same bytes."""
    root = folder / "nano"
    for path in NANO.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            (root / path.relative_to(NANO)).parent.mkdir(parents=True, exist_ok=True)
            (root / path.relative_to(NANO)).write_bytes(path.read_bytes())
    return root


KINDS: Mapping[str, Make] = {
    "images": images, "manifests": manifests, "configs": configs, "safetensors": safetensors, "tokenizers": tokenizers,
    "templates": templates, "lines": lines, "recipes": recipes,
}  # fmt: skip


def campaign(kinds: Mapping[str, int], seed: int) -> dict[str, forked.Tally]:
    """So many inputs of each kind."""
    found = {}
    for kind, count in kinds.items():
        started = time.monotonic()
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            os.environ["XDG_CACHE_HOME"] = folder  # what the user's cache remembers of files stays as it is
            found[kind] = forked.run(KINDS[kind](Path(folder)), range(count), f"{seed} {kind}", REST_BYTES)
        tally = found[kind]
        print(f"{kind}: {dict(tally.what)}, {len(tally.faults)} faults, {time.monotonic() - started:.0f} s", flush=True)
        for fault in tally.faults:
            print(f"--- {kind} {fault.number} (seed {seed}): {fault.fault}\n{fault.told}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, nargs="+", default=list(KINDS))
    given = parser.parse_args()
    total = sum(SHARES[kind] for kind in given.kind)
    found = campaign({kind: round(given.count * SHARES[kind] / total) for kind in given.kind}, given.seed)
    rows = [
        (
            kind, sum(t.what.values()), t.what["accepted"], t.what["refused"], len(t.faults), f"{t.slowest_s:.1f} s",
            f"{t.grown_bytes / MIB:.0f} MiB",
        )
        for kind, t in found.items()
    ]  # fmt: skip
    head = ("input", "mutated", "accepted", "refused", "faults", "slowest", "most memory")
    part = "" if set(given.kind) == set(KINDS) else f": {', '.join(given.kind)}"
    report.write(
        f"Mutated inputs{part}",
        head,
        rows,
        about="No traceback, no hang over ten seconds of processor time, no memory beyond the plan.",
    )
    sys.exit(1 if any(tally.faults for tally in found.values()) else 0)


if __name__ == "__main__":
    main()
