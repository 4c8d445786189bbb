"""The limit of `benchmarks.hard_limit`: what holds more than it may does not end well, what holds less does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks import hard_limit
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.preflight import find_bundle
from vlm_edge.units import MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")
HOLD = "import sys; held = bytearray(int(sys.argv[1])); held[::4096] = b'x' * len(held[::4096]); print(len(held))"


def held(size: int, limit: int) -> hard_limit.Done:
    return hard_limit.limited([sys.executable, "-c", HOLD, str(size)], limit)


def test_within_the_limit() -> None:
    done = held(60 * MIB, 160 * MIB)
    assert (done.code, done.output) == (0, f"{60 * MIB}\n")
    assert done.peak_bytes > 40 * MIB  # seen while it ran, not asked of it


def test_beyond_it() -> None:
    assert held(200 * MIB, 160 * MIB).code != 0


def test_file_pages_count_too(tmp_path: Path) -> None:
    """RLIMIT_DATA does not see them; the watchdog does."""
    (tmp_path / "big").write_bytes(b"x" * (120 * MIB))
    mapped = (
        "import mmap, sys, time; f = open(sys.argv[1], 'rb'); m = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ); "
        "n = sum(m[i] for i in range(0, len(m), 4096)); time.sleep(1)"
    )
    done = hard_limit.limited([sys.executable, "-c", mapped, str(tmp_path / "big")], 80 * MIB)
    assert done.code == hard_limit.KILLED


def test_requests_are_the_same_for_a_seed(tmp_path: Path) -> None:
    bundle = find_bundle(None)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    one, other, third = (
        hard_limit.requests(bundle, 3, seed, tmp_path / name) for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert [(r.size, r.question, r.options, r.peak_bytes) for r in one] == [
        (r.size, r.question, r.options, r.peak_bytes) for r in other
    ]
    assert [r.size for r in one] != [r.size for r in third]
    assert all(request.least_bytes <= request.peak_bytes for request in one)
    assert (tmp_path / "a" / one[0].image.name).read_bytes() == (tmp_path / "b" / other[0].image.name).read_bytes()


def test_what_fits_is_not_refused_and_what_does_not_is(tmp_path: Path) -> None:
    bundle = find_bundle(None)
    (request,) = hard_limit.requests(bundle, 1, 0, tmp_path)
    assert hard_limit.refusal(request, bundle) == ""
    roomy = hard_limit.Request(**{**vars(request), "least_bytes": request.peak_bytes + 2 * MIB})
    assert hard_limit.refusal(roomy, bundle) == "exit code 0"


def test_a_control_that_was_answered_is_no_request_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = hard_limit.Request(Path("page.png"), (64, 64), "?", AskOptions(), 100 * MIB, 90 * MIB)
    monkeypatch.setattr(hard_limit, "OUT", tmp_path / "out.md")
    monkeypatch.setattr(hard_limit, "requests", lambda *_: [request])
    monkeypatch.setattr(hard_limit, "limited", lambda *_: hard_limit.Done(0, 100 * MIB, "", ""))
    monkeypatch.setattr(hard_limit, "refusal", lambda *_: "")
    monkeypatch.setattr("sys.argv", ["hard_limit"])
    with pytest.raises(SystemExit, match="1"):
        hard_limit.main()
    assert (
        "1 requests: 1 answered within the limit and refused without the memory, 0 not." in hard_limit.OUT.read_text()
    )
