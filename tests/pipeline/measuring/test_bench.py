"""bench: what is measured on the embedded model, against files on disk, sums by hand and a clock that is given."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.load import to_plain
from vlm_edge.errors import BadInput, MissingDependency
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.machine import cpu_name
from vlm_edge.pipeline.measuring import bandwidth, bench_chart
from vlm_edge.pipeline.measuring.bench import STAGES, Benched, Decode, Spread, bench, check_settings, default_image

NEW_TOKENS = 12
LAYERS, KV_HEADS, HEAD_DIM, FP32 = 4, 4, 64, 4


@pytest.fixture(scope="module")
def benched() -> Benched:
    options = AskOptions(max_new_tokens=NEW_TOKENS)
    return bench(Pipeline.load, default_image(), "what is the total?", options, threads=1, repeats=3, warmup=1)


def test_every_question_pays_for_its_image(benched: Benched) -> None:
    for sample in (benched.cold, *benched.warm):
        assert sample.answer.tokens == benched.cold.answer.tokens
        assert all(sample.stages[stage] > 0 for stage in ("preprocess", "saliency", "vision", "prefill"))
        assert sum(sample.stages.values()) <= sample.ttft_ms
    assert len(benched.warm) == 3
    assert benched.load_ms > 0


def test_decoding_goes_on_behind_the_end_token(benched: Benched) -> None:
    plain = Pipeline.load().ask(default_image(), "what is the total?", AskOptions(max_new_tokens=NEW_TOKENS))
    assert plain.stop_reason == "eos"
    assert plain.tokens.generated < NEW_TOKENS == benched.cold.answer.tokens.generated
    assert benched.cold.answer.text.startswith(plain.text)


def test_bytes_of_a_token_are_the_decoders_files_and_half_an_answer_of_cache(benched: Benched) -> None:
    files = sum(path.stat().st_size for path in (NANO / "llm/cpu").iterdir())
    config = json.loads((NANO / "config.json").read_text())["text_config"]
    assert (config["num_hidden_layers"], config["num_key_value_heads"]) == (LAYERS, KV_HEADS)
    positions = benched.cold.answer.tokens.prompt + NEW_TOKENS // 2
    assert benched.decode.weights_bytes == files
    assert benched.decode.kv_bytes == 2 * LAYERS * KV_HEADS * HEAD_DIM * FP32 * positions
    assert (benched.precision("llm.graph"), benched.precision("vision.graph")) == ("int4", "fp32")


def test_json_is_plain_and_its_figures_follow_from_each_other(benched: Benched) -> None:
    plain: dict[str, Any] = json.loads(json.dumps(benched.to_json()))
    token = plain["warm_ms"]["per_token"]
    assert token["median"] == pytest.approx(statistics.median(token["values"]))
    assert plain["tokens_per_s"] == pytest.approx(1000 / token["median"], rel=0.01)
    traffic = plain["bandwidth"]
    reached = plain["tokens_per_s"] * traffic["bytes_per_token"]
    assert traffic["share"] == pytest.approx(reached / traffic["measured_bytes_per_s"], rel=0.01)
    assert plain["settings"] == {"warmup": 1, "repeats": 3, "new_tokens": NEW_TOKENS}
    assert plain["tokens"]["visual_before"] > plain["tokens"]["visual_after"]
    assert set(plain["versions"]) >= {"vlm-edge", "onnxruntime", "numpy"}
    assert "torch" not in plain["versions"]
    assert plain["memory"]["planned_peak_bytes"] > 100 << 20


def test_the_bars_are_as_long_as_the_time_to_the_first_token(benched: Benched) -> None:
    plain = benched.to_json()
    cold, warm = bench_chart.stage_parts(plain).values()
    assert sum(cold.values()) == pytest.approx(plain["cold_ms"]["load"] + plain["cold_ms"]["ttft"], abs=0.1)
    assert sum(warm.values()) >= plain["warm_ms"]["ttft"]["median"] - 0.1
    assert set(warm) == {*STAGES, "rest"}


def test_the_picture_is_written_whole(benched: Benched, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    bench_chart.draw(benched.to_json(), path)
    with Image.open(path) as drawn:
        assert (drawn.format, drawn.width > 800) == ("PNG", True)
    on_gpu = benched.to_json()
    on_gpu["bandwidth"] |= {"measured_bytes_per_s": None, "share": None}
    bench_chart.draw(on_gpu, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["bench.png"]


def test_a_picture_that_cannot_be_is_refused_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("bench.jpg", "nowhere/bench.png"):
        with pytest.raises(BadInput):
            bench_chart.check_drawing(tmp_path / name)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingDependency, match="matplotlib"):
        bench_chart.check_drawing(tmp_path / "bench.png")


def test_a_share_is_bytes_over_time_over_bandwidth() -> None:
    decode = Decode(weights_bytes=900, kv_bytes=100, bandwidth=200_000.0, in_cache=False)
    assert decode.share(10.0) == pytest.approx(0.5)  # 1000 bytes in 10 ms are 100,000 a second
    assert Decode(1, 1, None, in_cache=False).share(1.0) is None
    assert Spread((3.0, 1.0, 2.0)).to_json() == {"median": 2.0, "min": 1.0, "max": 3.0, "values": [3.0, 1.0, 2.0]}


def test_bandwidth_is_the_best_pass_over_the_buffer() -> None:
    times = itertools.accumulate([0.0, 4.0, 1.0, 2.0, 1.0, 8.0])  # passes of 4, 2 and 8 seconds
    found = bandwidth.read_bandwidth(threads=2, rounds=3, buffer_bytes=1 << 20, clock=lambda: next(times))
    assert found == (1 << 20) / 2


def test_bandwidth_uses_the_threads_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    monkeypatch.setattr(bandwidth.np, "max", lambda part: seen.append((threading.get_ident(), len(part))))
    bandwidth.read_bandwidth(threads=4, rounds=1, buffer_bytes=1 << 20)
    assert [length for _, length in seen] == [(1 << 20) // 8 // 4] * 4


@pytest.mark.parametrize(
    ("sizes", "most"), [(("32K", "1024K", "32768K"), 32 << 20), (("48K", "2M"), 2 << 20), (("x", ""), None), ((), None)]
)
def test_the_largest_cache(sizes: tuple[str, ...], most: int | None, tmp_path: Path) -> None:
    for i, size in enumerate(sizes):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{i}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert bandwidth.last_cache_bytes(tmp_path) == most


def test_the_processors_name(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    assert cpu_name(tmp_path)  # its architecture, where nothing is told
    (tmp_path / "proc/cpuinfo").write_text("processor : 0\nmodel name\t: Fast 9000\nmodel name\t: Fast 9000\n")
    assert cpu_name(tmp_path) == "Fast 9000"


@pytest.mark.parametrize(
    ("settings", "option"),
    [({"repeats": 0}, "--repeats"), ({"warmup": -1}, "--warmup"), ({"new_tokens": 1}, "--max-new-tokens")],
)
def test_settings_that_measure_nothing(settings: dict[str, int], option: str) -> None:
    with pytest.raises(BadInput, match=option):
        check_settings(**{"repeats": 1, "warmup": 0, "new_tokens": 2} | settings)


def test_the_new_option_is_told_only_where_it_is_set() -> None:
    assert "ignore_eos" not in to_plain(AskOptions())
    assert to_plain(AskOptions(ignore_eos=True))["ignore_eos"]
