"""What is done to inputs: bytes, JSON values and lines of text, by the same changes as the fuzz tests make."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence

from tests.core.test_bundle_fuzz import JSON_CHANGES, TEXT_CHANGES, deep_value, odd_value, places

JINJA = (
    "{{ '' .__class__.__mro__ }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 10**9 }}", "{% endif %}",
    "{% set x = namespace(a=1) %}", "{{ messages[0].content[99].text }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ raise_exception('no') }}", "{% include '/etc/passwd' %}", "{{ messages | tojson }}", "{{ undefined.thing }}",
    "\0", "{{", "{% raw %}", "{# ", "{{ 1/0 }}", "{{ '%s' % messages }}", "{{ [[]]*10**8 }}",
)  # fmt: skip
MOST_PLACES = 300
"""Beyond which a value is odd enough, and perhaps as deep as Python can go."""
YAML_LINES = (
    "&a [*a]", "- x", "? y", "!!python/object/apply:os.system ['true']", "key: [1, 2", "\t tab: 1", "name: name", "limits: {}",
    "<<: {max_tiles: 1}", "max_tiles: .inf", "max_model_len: 1e400", "? {a: b}", "%YAML 9.9", "---", "...", "a: b: c",
)  # fmt: skip


def text(data: bytes, rng: random.Random) -> bytes:
    """Bytes of a text file: one change or a few, JSON's own where it is JSON."""
    changes = (*TEXT_CHANGES, *JSON_CHANGES, *JSON_CHANGES)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        try:
            data = rng.choice(changes)(data, rng) or b"{}"
        except (
            ValueError,
            TypeError,
            IndexError,
            RecursionError,
        ):  # it is no JSON any more, or has nothing left to change
            data = rng.choice(TEXT_CHANGES[:1])(data, rng) if data else b"{}"
    return data


def plain(value: object, rng: random.Random) -> bytes:
    """A JSON value with odd values in a few of its places."""
    made = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 2, 3))):
        spots = list(places(made))
        if not spots or len(spots) > MOST_PLACES:
            break
        container, key = rng.choice(spots)
        rng.choice((odd_value, odd_value, odd_value, deep_value))(container, key, rng)
        made = json.loads(json.dumps(made))  # so that no change reaches into the odd values themselves
    return json.dumps(made).encode()


def lines(data: bytes, rng: random.Random, odd: Sequence[str]) -> bytes:
    """Lines left out, doubled, moved, or replaced by odd ones; then perhaps bytes."""
    rows = data.split(b"\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(rows))
        kind = rng.randrange(5)
        if kind == 0 and len(rows) > 1:
            del rows[at]
        elif kind == 1:
            rows.insert(at, rng.choice(odd).encode())
        elif kind == 2:
            rows.insert(rng.randrange(len(rows)), rows[at])
        elif kind == 3:
            rows[at] = rows[at][: rng.randrange(len(rows[at]) + 1)] + rng.choice(odd).encode()
        else:
            rows[at] = text(rows[at] or b"0", rng)
    return b"\n".join(rows)


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """A header with other values, lengths or bytes, in front of data that may be cut."""
    (size,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + size], data[8 + size :]
    if rng.random() < 0.2:
        return data[:8] + _reshaped(header, rng) + body
    header = plain(json.loads(header), rng) if rng.random() < 0.6 else text(header, rng)
    length = rng.choice((len(header),) * 6 + (0, 1, len(header) - 1, len(header) + 1, 1 << 31, (1 << 64) - 1))
    body = body[: rng.choice((len(body),) * 4 + (0, len(body) // 2, max(0, len(body) - 1)))]
    return struct.pack("<Q", max(0, length)) + header + body


def _reshaped(header: bytes, rng: random.Random) -> bytes:
    """Of the same length, and one that may well be right: other shapes of as many values, another type of as many bits."""
    shape = rng.choice((b"[8,4]", b"[16,2]", b"[ 32]", b"[1,32]", b"[4,9]", b"[32 ]"))
    changed = header.replace(b"[4, 8]", shape.ljust(6), rng.choice((1, 2, 4)))
    return changed.replace(b'"F16"', rng.choice((b'"F16"', b'"I16"', b'"F32"', b'"F61"')), 1)
