"""Hostile headers and indexes: whatever becomes of valid ones, they open as something the library opens too, or are BadInput."""

from __future__ import annotations

import json
import random
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.core.shard_files import TENSORS, data_of, header_of, index_of, shard, write_sharded, write_single
from tests.core.test_bundle_fuzz import JSON_CHANGES, TEXT_CHANGES, places
from vlm_edge.core.checkpoint import Checkpoint, open_checkpoint
from vlm_edge.core.shards import DTYPE_BITS, read_tensor
from vlm_edge.errors import BadInput

MUTATIONS = 600
SECONDS_EACH = 1.0
PEAK_BYTES = 24 << 20
"""Of Python objects; the longest mutated text has 200 kB."""
HEADER = json.dumps(header_of(list(TENSORS))).encode()
DATA = data_of(json.loads(HEADER))


def nudge_number(text: bytes, rng: random.Random) -> bytes:
    """Small changes that leave everything well-formed: sizes, offsets, dtypes."""
    plain = json.loads(text)
    spots = [(container, key) for container, key in places(plain) if type(container[key]) is int]
    container, key = rng.choice(spots)
    container[key] = rng.choice((container[key] + rng.choice((-8, -4, -1, 1, 4, 8)), container[key] * 2, 1 << 62))
    return json.dumps(plain).encode()


def swap_fields(text: bytes, rng: random.Random) -> bytes:
    plain = json.loads(text)
    a, b = rng.sample(list(TENSORS), 2)
    field = rng.choice(("dtype", "shape", "data_offsets"))
    plain[a][field], plain[b][field] = plain[b][field], plain[a][field]
    return json.dumps(plain).encode()


def other_dtype(text: bytes, rng: random.Random) -> bytes:
    plain = json.loads(text)
    plain[rng.choice(list(TENSORS))]["dtype"] = rng.choice(list(DTYPE_BITS))
    return json.dumps(plain).encode()


def same_meaning(text: bytes, rng: random.Random) -> bytes:
    """Another order, another spacing, another name: still valid, so that the test sees files that open."""
    entries = list(json.loads(text).items())
    rng.shuffle(entries)
    renamed = {f"{name}.{rng.randrange(9)}" if name != "__metadata__" else name: entry for name, entry in entries}
    return json.dumps(renamed, indent=rng.choice((None, 1, 2))).encode()


def headers(rng: random.Random) -> Iterator[bytes]:
    changes = (*TEXT_CHANGES, *JSON_CHANGES, nudge_number, nudge_number, swap_fields, other_dtype, same_meaning)
    for _ in range(MUTATIONS):
        text = rng.choice(changes)(HEADER, rng)
        length = rng.choice((None,) * 9 + (rng.randrange(200), rng.getrandbits(64), len(text) + rng.choice((-1, 1))))
        data = rng.choice((DATA,) * 6 + (DATA[: rng.randrange(len(DATA))], DATA + bytes(rng.randrange(1, 9))))
        yield shard(text, data, length=length)


def indexes(rng: random.Random) -> Iterator[bytes]:
    original = json.dumps(index_of()).encode()
    for _ in range(MUTATIONS):
        yield rng.choice((*TEXT_CHANGES, *JSON_CHANGES))(original, rng)


def attempt(root: Path) -> Checkpoint | BadInput:
    try:
        return open_checkpoint(root)
    except BadInput as error:
        return error


def check(checkpoint: Checkpoint) -> None:
    """What opened is inside its files, can be read, and is no invention: the library finds the same tensors there."""
    for name, tensor in checkpoint.tensors.items():
        assert len(read_tensor(tensor)) == tensor.bytes
        with safe_open(tensor.path, "np") as reference:
            assert reference.get_slice(name).get_shape() == list(tensor.shape)
            assert reference.get_slice(name).get_dtype() == tensor.dtype


@pytest.mark.parametrize(
    ("write", "file", "mutations"),
    [(write_single, "model.safetensors", headers), (write_sharded, "model.safetensors.index.json", indexes)],
    ids=["headers", "indexes"],
)
def test_no_mutation_gets_through(
    write: Callable[[Path], Path],
    file: str,
    mutations: Callable[[random.Random], Iterator[bytes]],
    tmp_path: Path,
) -> None:
    write(tmp_path)
    opened = 0
    tracemalloc.start()
    try:
        for number, content in enumerate(mutations(random.Random(20_26))):
            (tmp_path / file).write_bytes(content)
            tracemalloc.reset_peak()
            before, started = tracemalloc.get_traced_memory()[0], time.perf_counter()
            outcome = attempt(tmp_path)
            assert time.perf_counter() - started < SECONDS_EACH, number
            assert tracemalloc.get_traced_memory()[1] - before < PEAK_BYTES, number
            if isinstance(outcome, BadInput):
                assert outcome.remedy
                assert len(outcome.message) < 2000, number
                outcome.message.encode("utf-8")
            else:
                opened += 1
                check(outcome)
    finally:
        tracemalloc.stop()
    assert MUTATIONS / 50 < opened < MUTATIONS / 2
