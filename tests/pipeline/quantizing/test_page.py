"""The HTML report of `quantize`: every figure of the JSON is in it, and dots lie where their values are."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from vlm_edge.errors import BadInput
from vlm_edge.pipeline import html_page
from vlm_edge.pipeline.quantizing.page import page
from vlm_edge.pipeline.quantizing.plot import plot
from vlm_edge.units import GIB, MIB

GOLDEN = Path(__file__).parents[2] / "data/quantize/page.html"
CLIPS = {"self_attn.v_proj": 0.5, "mlp.down_proj": 0.25}


def pair(linears: tuple[str, ...], ratio: float | None, loss: float, plain_loss: float) -> dict[str, Any]:
    return {"linears": linears, "ratio": ratio, "loss": loss, "plain_loss": plain_loss, "searched_tokens": 512}


def layer(index: int, error: float | None, plain_error: float | None, ratio: float | None) -> dict[str, Any]:
    pairs = [
        pair(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ratio, 2e-4, 4e-4),
        pair(("mlp.down_proj",), 0.75, 1e-3, 1e-3),
    ]
    return {
        "index": index,
        "pairs": pairs,
        "clip_share": CLIPS,
        "error": error,
        "plain_error": plain_error,
        "seconds": 1.5,
    }


def report(**other: Any) -> dict[str, Any]:
    """As reports/quantize.json holds it."""
    return {
        "model": "tiny <llava> & more",
        "architecture": "llama",
        "options": {"method": "awq", "bits": 4, "group_size": 128, "symmetric": False, "seqlen": 1024, "calib": ""},
        "calibration": {
            "read": 9, "with_image": 5, "skipped_no_question": 2, "cut": 1, "tokens_cut": 1300, "used": 7, "tokens": 4173,
            "sequences": 7, "held_out": 1,
        },
        "layers": [layer(0, 1e-4, 1e-3, 0.5), layer(1, 1e-3, 1e-2, None), layer(2, 2e-3, 3e-2, 0.25)],
        "held_out": {"tokens": 1234, "kl": 0.0123, "plain_kl": 0.0456, "agreement": 0.981, "plain_agreement": 0.942},
        "gates": {"bit_exact": True, "kl_no_worse_than_rtn": True},
        "memory": {
            "limit_bytes": 3 * GIB, "planned_bytes": 2 * GIB, "least_bytes": GIB, "peak_bytes": 1536 * MIB,
            "hidden_states": "file",
        },
        "resumed_layers": 1,
        "seconds": 61.25,
        "device": "cpu",
        "threads": 2,
        "versions": {"vlm-edge": "0.1.0", "torch": "2.13.0+cpu"},
        "command": "vlm-edge quantize 'a <b>' out",
    } | other  # fmt: skip


PLAIN = [{"index": 0, "pairs": [], "clip_share": None, "error": None, "plain_error": None, "seconds": 0.1}]


def drawn(text: str) -> ET.Element:
    return ET.fromstring(re.search(r"<svg.*?</svg>", text, re.DOTALL)[0])  # type: ignore[index]


def panels(svg: ET.Element) -> list[dict[tuple[str, int], ET.Element]]:
    """Of each panel the dots by series and layer, as their tooltips name them."""
    found = []
    for panel in svg.findall("g"):
        dots = {}
        for dot in panel.findall("circle"):
            index, name = re.fullmatch(r"layer (\d+), (.+): [-\de.]+", dot[0].text or "").groups()  # type: ignore[union-attr]
            dots[name, int(index)] = dot
        found.append(dots)
    return found


def floors(svg: ET.Element) -> list[float]:
    """Where the lowest grid line of each panel lies."""
    return [max(float(line.get("y1", "nan")) for line in panel.findall("line")) for panel in svg.findall("g")]


def height(dot: ET.Element) -> float:
    return float(dot.get("cy", "nan"))


def test_the_page_is_as_it_was() -> None:
    """A change of layout shows here: look at the page, then write it again with tests/data/quantize/write.py."""
    assert page(report()) == GOLDEN.read_text("utf-8")


def test_the_page_stands_alone_and_tells_everything() -> None:
    text = page(report())
    assert not re.search(r"(src|href)=|<script|@import|url\(", text)
    assert "prefers-color-scheme: dark" in text
    assert "tiny &lt;llava&gt; &amp; more" in text
    assert "<code>vlm-edge quantize &#x27;a &lt;b&gt;&#x27; out</code>" in text
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    told = dict(pairwise(cells))
    assert told["samples read"] == "9"
    assert told["skipped: no question"] == "2"
    assert (told["cut at the longest sequence"], told["tokens cut off"]) == ("1", "1,300")
    assert (told["peak of the process"], told["limit"], told["hidden states in"]) == ("1.5 GiB", "3.0 GiB", "file")
    assert told["torch"] == "2.13.0+cpu"
    assert told["symmetric"] == "no"
    assert "1,234 held-out tokens" in text
    assert "0.0123 nats</b>; plain rounding (RTN) 0.0456" in text
    assert "98.1%" in text


def test_a_worse_result_is_marked_as_one() -> None:
    worse = report(held_out={**report()["held_out"], "kl": 0.5})
    assert '<b class="no">0.5 nats</b>' in page(worse)
    assert '<b class="yes">' in page(report())


def test_losses_lie_on_a_logarithmic_scale() -> None:
    dots = panels(drawn(page(report())))[0]
    assert len(dots) == 6
    decade = height(dots["RTN", 0]) - height(dots["RTN", 1])
    assert decade > 10
    assert height(dots["AWQ", 0]) - height(dots["RTN", 0]) == pytest.approx(decade, abs=0.2)
    assert height(dots["AWQ", 1]) == height(dots["RTN", 0])
    assert height(dots["RTN", 1]) - height(dots["RTN", 2]) == pytest.approx(math.log10(3) * decade, abs=0.2)
    left = [float(dots["AWQ", index].get("cx", "nan")) for index in range(3)]
    assert left[1] - left[0] == pytest.approx(left[2] - left[1], abs=0.2)


def test_searches_ratios_and_clips_lie_where_their_values_are() -> None:
    svg = drawn(page(report()))
    _, searches, ratios, clips = panels(svg)
    _, floor, _, clip_floor = floors(svg)
    for dots, zero, half, full in (
        (searches, floor, ("q, k, v", 0), ("down", 0)),
        (clips, clip_floor, ("down", 0), ("v", 0)),
    ):
        assert zero - height(dots[full]) == pytest.approx(2 * (zero - height(dots[half])), abs=0.2)
        assert zero - height(dots[half]) > 10
    quarter = height(ratios["q, k, v", 2]) - height(ratios["q, k, v", 0])
    assert height(ratios["q, k, v", 0]) - height(ratios["down", 0]) == pytest.approx(quarter, abs=0.2)
    assert height(ratios["q, k, v", 1]) - height(ratios["q, k, v", 2]) == pytest.approx(quarter, abs=0.2)
    rings = [key for key, dot in ratios.items() if dot.get("fill") == "none"]
    assert rings == [("q, k, v", 1)]
    assert ratios["down", 0].get("fill") == searches["down", 0].get("fill") == clips["down", 0].get("fill")


def test_plain_rounding_has_nothing_to_plot() -> None:
    assert plot(PLAIN) == ""
    text = page(report(layers=PLAIN, held_out=None, calibration={"sequences": 0, "held_out": 0}, command=""))
    assert "without calibration" in text
    assert "<svg" not in text
    assert "Made with" not in text
    assert "samples read" not in text


@pytest.mark.parametrize("count", [1, 80])
def test_one_layer_or_many_stay_within_the_picture(count: int) -> None:
    svg = drawn(plot([layer(i, 1e-5 * (i + 1), 0.3, 0.5) for i in range(count)]))
    _, _, width, tall = map(float, svg.get("viewBox", "").split())
    dots = svg.findall("g/circle")
    assert len(dots) == count * (2 + 2 + 2 + 2)
    assert all(0 < float(dot.get("cx", "nan")) < width and 0 < height(dot) < tall for dot in dots)


def test_losses_of_zero_and_searches_without_loss_are_drawn_or_left_out() -> None:
    exact = layer(0, 0.0, 1e-3, 0.5)
    exact["pairs"][1]["plain_loss"] = 0.0
    dots = panels(drawn(plot([exact])))
    assert height(dots[0]["AWQ", 0]) > height(dots[0]["RTN", 0])
    assert ("down", 0) not in dots[1]


def test_a_search_beyond_rtns_loss_is_within_the_scale() -> None:
    worse = layer(0, 1e-4, 1e-3, 0.5)
    worse["pairs"][0]["loss"] = 7e-4
    text = plot([worse])
    assert "200%" in text
    dots = panels(drawn(text))
    assert height(dots[1]["q, k, v", 0]) < height(dots[1]["down", 0])


def test_a_page_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        html_page.write("text", tmp_path / "file/page.html")
