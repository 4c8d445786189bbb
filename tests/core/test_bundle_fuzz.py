"""Hostile manifests: whatever becomes of a valid manifest.json, it loads with its old content or is DamagedBundle."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.core.bundle import Bundle, open_bundle
from vlm_edge.errors import DamagedBundle

MUTATIONS = 500
SECONDS_EACH = 1.0
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1 << 31, 1 << 63, 10**300, -(10**300), 1e308, 1e-320, float("nan"), float("inf"), "",
    "\0", "\ud800", "../../etc/passwd", "x" * 100_000, [], [[]], {}, {"a": 1}, [None] * 1000,
)  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value, at any depth."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


def flip_bytes(text: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(text)
    for _ in range(rng.choice((1, 1, 1, 5, 50))):
        mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def delete_bytes(text: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(text))
    return text[:start] + text[start + rng.choice((1, 1, 10, 10_000)) :]


def insert_bytes(text: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(text))
    junk = rng.choice((b"\0", b"\xff", b"{", b"]", b'"', b"9" * 5000, b"\xef\xbb\xbf", b"[" * 50_000, b" " * 1000))
    return text[:at] + junk + text[at:]


def splice_bytes(text: bytes, rng: random.Random) -> bytes:
    a, b, c = sorted(rng.randrange(len(text)) for _ in range(3))
    return text[:b] + text[a:c] + text[b:]


def json_change(change: Callable[[Any, Any, random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
    def mutate(text: bytes, rng: random.Random) -> bytes:
        plain = json.loads(text)
        container, key = rng.choice(list(places(plain)))
        change(container, key, rng)
        return json.dumps(plain).encode()

    return mutate


def odd_value(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = rng.choice(ODD_VALUES)


def other_type(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = rng.choice((str(container[key]), [container[key]], {"value": container[key]}, None))


def deep_value(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = nested(rng.choice((10, 100, 190, 400)))


def rename_key(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict):
        container[rng.choice((key + "s", key[:-1], key.upper(), "\ud800", "", "__class__"))] = container.pop(key)
    else:
        container.append(container[key])


def remove(container: Any, key: Any, _: random.Random) -> None:
    del container[key]


def add_key(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict):
        container[f"{key}_"] = rng.choice(ODD_VALUES)
    else:
        container.insert(0, rng.choice(ODD_VALUES))


TEXT_CHANGES = (flip_bytes, delete_bytes, insert_bytes, splice_bytes)
JSON_CHANGES = tuple(map(json_change, (odd_value, other_type, deep_value, rename_key, remove, add_key)))


@pytest.mark.parametrize("sealed", [False, True], ids=["as it is", "sealed again"])
def test_no_mutation_gets_through(tiny_bundle: Bundle, sealed: bool) -> None:
    """Sealed again: an attacker gave the changed manifest a fitting hash; then it may load, but never crash."""
    path = tiny_bundle.root / "manifest.json"
    original = path.read_bytes()
    rng = random.Random(20_26)
    loaded = 0
    for number in range(MUTATIONS):
        mutated = rng.choice((*TEXT_CHANGES, *JSON_CHANGES))(original, rng)
        path.write_bytes(seal(mutated) if sealed else mutated)
        started = time.perf_counter()
        outcome = attempt(tiny_bundle.root)
        if isinstance(outcome, DamagedBundle):
            assert outcome.remedy
            assert len(outcome.message) < 2000, number
        else:
            loaded += 1
            assert sealed or outcome == tiny_bundle, number
            assert all((outcome.root / artifact.path).is_file() for artifact in outcome.manifest.artifacts)
        assert time.perf_counter() - started < SECONDS_EACH, number
    assert 0 < loaded < MUTATIONS / 2


def attempt(root: Path) -> Bundle | DamagedBundle:
    try:
        return open_bundle(root)
    except DamagedBundle as error:
        return error


def seal(text: bytes) -> bytes:
    """The same JSON with the hash that belongs to it, or the text as it is where it is no such JSON."""
    try:
        plain = json.loads(text)
        plain["self_sha256"] = ""
        canonical = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
        plain["self_sha256"] = hashlib.sha256(canonical).hexdigest()
        return json.dumps(plain).encode()
    except (ValueError, TypeError, RecursionError):
        return text
