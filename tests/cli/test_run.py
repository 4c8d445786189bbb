"""`vlm-edge run` on the embedded model: answers, and every wrong input as two lines and an exit code."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.program import VLM_EDGE, in_checkout
from tests.image_bytes import png
from vlm_edge.backends.onnx.graph_builder import GraphBuilder
from vlm_edge.cli.main import execute
from vlm_edge.core import host
from vlm_edge.core.bundle import hash_file, open_bundle, write_manifest
from vlm_edge.core.resources import resource_dir
from vlm_edge.pipeline.answering.options import AskOptions
from vlm_edge.pipeline.answering.question_plan import plan
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.vision.sources import probe

PAGE = resource_dir("calibration") / "pages/receipt.png"
TOTAL = "what is the total?"


def expected_total() -> str:
    questions = json.loads(PAGE.with_suffix(".json").read_text())["questions"]
    return next(entry["answer"] for entry in questions if entry["question"] == TOTAL)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command line that must fail with two lines; returns them."""

    def run(*arguments: str, code: int = 2) -> str:
        assert execute(list(arguments)) == code
        shown = capsys.readouterr()
        lines = shown.err.splitlines()
        assert [line.split(":")[0] for line in lines] == ["error", "fix"], shown.err
        assert "Traceback" not in shown.err
        assert shown.out == ""
        return shown.err

    return run


def test_the_sample_page_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", str(PAGE), TOTAL]) == 0
    assert capsys.readouterr().out == expected_total() + "\n"


def test_json_holds_the_contract_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["run", str(PAGE), "where is the circle?", "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert shown.err == ""
    assert set(answer) == {
        "answer", "tokens", "tiles", "boxes", "points", "timings_ms", "memory", "stop_reason", "bundle", "device",
    }  # fmt: skip
    assert set(answer["tokens"]) == {"visual_before", "visual_after", "prompt", "generated"}
    assert set(answer["timings_ms"]) == {
        "load",
        "preprocess",
        "saliency",
        "vision",
        "reduce",
        "prefill",
        "decode",
        "total",
    }
    assert answer["tokens"]["visual_before"] == 64 * (1 + len(answer["tiles"]))
    assert answer["stop_reason"] == "eos"
    (box,) = answer["boxes"]
    assert 0 <= box["box"][0] < box["box"][2] <= 1322
    assert answer["memory"]["measured_peak_bytes"] > 0


def test_standard_input_is_an_image(tmp_path: Path) -> None:
    command = [*VLM_EDGE, "run", "-", TOTAL]
    where = in_checkout(tmp_path)
    done = subprocess.run(command, input=PAGE.read_bytes(), capture_output=True, check=False, **where)
    assert done.stdout.decode().strip() == expected_total()
    assert done.returncode == 0


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    """`true` reads nothing and is gone long before there is an answer."""
    command = f"{' '.join(VLM_EDGE)} run {PAGE} '{TOTAL}' --json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, check=False, **in_checkout(tmp_path))
    assert done.stdout == b"141\n"
    assert done.stderr == b""


def test_explain_writes_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "seen.png"
    assert execute(["run", str(PAGE), TOTAL, "--explain", str(target)]) == 0
    capsys.readouterr()
    with Image.open(target) as picture:
        assert picture.width > 600


def test_first_frame_of_an_animation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [Image.open(PAGE).convert("RGB"), Image.new("RGB", (1322, 1344))]
    frames[0].save(tmp_path / "page.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert execute(["run", str(tmp_path / "page.webp"), TOTAL]) == 0
    assert capsys.readouterr().out.strip() == expected_total()


BAD_IMAGES = {
    "empty": b"",
    "truncated": PAGE.read_bytes()[:5000],
    "text": b"this is no image at all",
    "no-pixels": png(0, 10, depth=8, colour=2, rows=b""),
    "enormous": png(100_000, 100_000, depth=8, colour=2, rows=b""),
    "short": png(400, 400, depth=8, colour=2, rows=b"\0" * 100)[:-20],
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images(kind: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / f"{kind}.png"
    path.write_bytes(BAD_IMAGES[kind])
    assert path.name in refused("run", str(path), TOTAL)


def test_missing_image_and_folder(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "does not exist" in refused("run", str(tmp_path / "nope.png"), TOTAL)
    assert "folder" in refused("run", str(tmp_path), TOTAL)


def test_pixel_limit_is_an_option(refused: Callable[..., str]) -> None:
    assert "--max-pixels" in refused("run", str(PAGE), TOTAL, "--max-pixels", "1000")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--tiling", "autoo"),
        ("--reduce", "zip"),
        ("--device", "tpu"),
        ("--max-tiles", "-1"),
        ("--max-tiles", "7"),
        ("--max-tiles", "many"),
        ("--max-new-tokens", "0"),
        ("--keep", "0"),
        ("--keep", "1.5"),
        ("--threshold", "nan"),
        ("--temperature", "-1"),
        ("--temperature", "inf"),
        ("--top-p", "0"),
        ("--threads", "0"),
        ("--threads", "100000"),
        ("--threads", "99999999999"),
        ("--seed", "-1"),
        ("--stop", ""),
        ("--budget", "lots"),
        ("--budget", "-1GiB"),
        ("--max-pixels", "0"),
        ("--no-such-option",),
    ],
)
def test_option_values_out_of_range(arguments: tuple[str, ...], refused: Callable[..., str]) -> None:
    refused("run", str(PAGE), TOTAL, *arguments)


def test_questions_that_cannot_be_asked(refused: Callable[..., str]) -> None:
    assert "empty" in refused("run", str(PAGE), "  ")
    assert "UTF-8" in refused("run", str(PAGE), "what is \udcff?")
    assert "context" in refused("run", str(PAGE), "what " * 900)
    assert "<image>" in refused("run", str(PAGE), "what is <image> the total?")
    assert "question" in refused("run", str(PAGE))
    assert "1 image" in refused("run", str(PAGE), str(PAGE), TOTAL)
    assert "run" in refused("rnu", str(PAGE), TOTAL)


def test_a_budget_that_is_too_small_is_refused_before_loading(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vlm_edge.backends.onnx import session

    monkeypatch.setattr(session, "open_session", lambda *_, **__: pytest.fail("a session was opened"))
    assert "--budget" in refused("run", str(PAGE), TOTAL, "--budget", "40MiB", code=1)


def test_a_budget_for_fewer_tiles_lowers_them_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """Between what six tiles need and what none does, as many as fit are shown."""
    header = probe(PAGE)
    bundle = open_bundle(NANO)

    def peak(tiles: int) -> int:
        return plan(bundle, AskOptions(max_tiles=tiles), images=(header,), budget_bytes=1 << 40).peak_bytes

    budget = (peak(3) + peak(4)) // 2
    assert execute(["run", str(PAGE), TOTAL, "--budget", str(budget), "--json"]) == 0
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    assert answer["lowered"] == {"asked_tiles": 6, "max_tiles": 3}
    assert len(answer["tiles"]) <= 3
    assert answer["memory"]["planned_peak_bytes"] <= budget
    assert "6 tiles do not fit" in shown.err
    assert execute(["run", str(PAGE), TOTAL, "--budget", "8GiB", "--json"]) == 0
    assert "lowered" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("target", ["missing/seen.png", ".", "seen.jpeg"])
def test_explain_paths_that_cannot_be_written(target: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    refused("run", str(PAGE), TOTAL, "--explain", str(tmp_path / target))


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the embedded bundle that a test may damage."""
    return Path(shutil.copytree(NANO, tmp_path / "bundle"))


def edit(bundle: Path, **changes: object) -> None:
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def point_outside(bundle: Path) -> None:
    (bundle.parent / "outside").write_bytes((bundle / "config.json").read_bytes())
    manifest = open_bundle(bundle).manifest
    moved = tuple(replace(a, path="../outside") if a.role == "config" else a for a in manifest.artifacts)
    write_manifest(bundle, replace(manifest, artifacts=moved))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": shutil.rmtree,
    "empty": lambda b: (shutil.rmtree(b), b.mkdir()),
    "half-written": lambda b: (b / "manifest.json").unlink(),
    "newer schema": lambda b: edit(b, schema_version=99),
    "edited manifest": lambda b: edit(b, name="other"),
    "unknown key": lambda b: edit(b, extra=1),
    "cut manifest": lambda b: (b / "manifest.json").write_text('{"schema_version": 1'),
    "flipped byte": lambda b: flip(b / "vision/cpu/model.onnx", 200_000),
    "flipped tokenizer": lambda b: flip(b / "tokenizer.json", 900),
    "shorter file": lambda b: (b / "llm/embed.safetensors").write_bytes(b"short"),
    "missing file": lambda b: (b / "llm/cpu/model.onnx.data").unlink(),
    "path outside": point_outside,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_bundles(kind: str, bundle: Path, refused: Callable[..., str]) -> None:
    DAMAGE[kind](bundle)
    refused("run", str(PAGE), TOTAL, "--bundle", str(bundle))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{% for i in range(10 ** 12) %}x{% endfor %}",
        "{{ unclosed",
        "no image at all",
    ],
)
def test_hostile_chat_templates(template: str, bundle: Path, refused: Callable[..., str]) -> None:
    path = bundle / "chat_template.jinja"
    path.write_text(template)
    manifest = open_bundle_after(bundle, path)
    assert "template" in refused("run", str(PAGE), TOTAL, "--bundle", str(bundle)), manifest


def open_bundle_after(bundle: Path, changed: Path) -> str:
    """Write a manifest that is right about a changed file, as the author of a hostile bundle would."""
    plain = json.loads((bundle / "manifest.json").read_text())
    for artifact in plain["artifacts"]:
        if artifact["path"] == changed.name:
            artifact |= {"sha256": hash_file(changed), "bytes": changed.stat().st_size}
    (bundle / "manifest.json").write_text(json.dumps(plain))
    from vlm_edge.core.bundle import Manifest
    from vlm_edge.core.load import parse

    write_manifest(bundle, parse(plain, Manifest, "manifest.json"))
    return open_bundle(bundle).manifest.name


def test_arrays_and_bytes_through_the_api() -> None:
    from vlm_edge import Pipeline

    pipeline = Pipeline.load()
    pixels = np.asarray(Image.open(PAGE).convert("RGB"))
    answers = {pipeline.ask(image, TOTAL).text for image in (pixels, PAGE.read_bytes(), io.BytesIO(PAGE.read_bytes()))}
    assert answers == {expected_total()}


def test_a_few_threads_for_each_processor_are_allowed() -> None:
    assert host.most_threads() >= max(64, 2 * host.threads())
    assert host.most_threads() < 100_000


@pytest.fixture(scope="module")
def own_rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a family that cuts images by rules of its own."""
    pytest.importorskip("torch")
    from tests import runnable

    return runnable.make("internvl", tmp_path_factory.mktemp("internvl")).bundle.root


@pytest.mark.parametrize(
    ("options", "says", "remedy"),
    [
        (("--max-tiles", "5"), "--max-tiles 5 exceeds this bundle's limit", "4 tiles"),
        (("--max-tiles", "1"), "px is cut into", "--tiling none"),
        (("--max-pixels", "1000"), "1000", "--max-pixels"),
    ],
)
def test_a_family_with_rules_of_its_own_refuses_before_anything_is_loaded(
    own_rules: Path, options: tuple[str, ...], says: str, remedy: str, refused: Callable[..., str], monkeypatch
) -> None:
    monkeypatch.setattr("vlm_edge.pipeline.answering.run.Pipeline.load", lambda *_, **__: pytest.fail("loaded"))
    message = refused("run", str(PAGE), "what is the total?", "--bundle", str(own_rules), *options)
    assert says in message
    assert remedy in message


def red_model(path: Path, *, stride: int = 8) -> Path:
    """A saliency model of a user's own: how much redder than green each stride x stride px are."""
    onnx = pytest.importorskip("onnx")
    graph = GraphBuilder("")
    red, green = (graph.op("Gather", "image", graph.integers(channel), axis=1) for channel in (0, 1))
    redder = graph.op("Relu", graph.op("Sub", red, green))
    pooled = graph.op("AveragePool", redder, kernel_shape=[stride, stride], strides=[stride, stride])
    graph.op("Squeeze", pooled, graph.integers(1), output="lesions")
    shapes = [("image", ("n", 3, "h", "w"))], [("lesions", np.float32, ("n", "r", "c"))]
    onnx.save(graph.model("lesions", *shapes), str(path))
    return path


def test_a_saliency_model_of_the_users_own_places_the_tiles(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]
) -> None:
    rng = np.random.default_rng(3)
    image = np.full((700, 900, 3), 200, np.uint8)
    image[20:100, 20:300] = np.repeat(rng.integers(0, 2, (80, 280, 1), np.uint8) * 255, 3, axis=2)  # black on white
    image[500:560, 700:780] = (220, 60, 60)
    Image.fromarray(image).save(tmp_path / "slide.png")
    asked = ["run", str(tmp_path / "slide.png"), TOTAL, "--max-tiles", "1", "--max-new-tokens", "1", "--json"]

    def tile(*options: str) -> list[int]:
        assert execute([*asked, *options]) == 0
        (found,) = json.loads(capsys.readouterr().out)["tiles"]
        return list(found["box"])

    x0, y0, x1, y1 = tile("--saliency-model", str(red_model(tmp_path / "lesions.onnx")))
    assert x0 <= 700
    assert y0 <= 500
    assert x1 >= 780
    assert y1 >= 560
    assert tile("--saliency", "detail")[1] < 100
    wrong = red_model(tmp_path / "wrong.onnx", stride=48)
    error = refused(*asked[:-1], "--saliency-model", str(wrong))
    assert "wrong.onnx gives" in error
    assert "[N, H / s, W / s]" in error
