"""The network that flags regions: its labels, its size, its file, and what the one that ships has learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.nano import saliency
from recipes.nano.fonts import FontsMissing, check_fonts
from recipes.nano.grounds import HELD_OUT, TAUGHT, on_texture
from recipes.nano.pages import Line, Page, Style, draw_page
from vlm_edge.backends.onnx.saliency import OnnxSaliency
from vlm_edge.core.bundle import open_bundle
from vlm_edge.pipeline.embedded import NANO

SMALL = Style(max_side_px=520)


def line(box: tuple[float, float, float, float]) -> Line:
    return Line("total", "1", box, (box[0],), box[1], "none", 12)


def page_of(*boxes: tuple[float, float, float, float]) -> Page:
    return Page(np.full((45, 61, 3), 200, np.uint8), tuple(line(box) for box in boxes), (), 0.0)


def require_fonts() -> None:
    try:
        check_fonts()
    except FontsMissing as missing:
        pytest.skip(str(missing))


def test_labels_equal_a_count_of_pixels() -> None:
    page = page_of((3, 4, 30.2, 17), (40, 30, 80, 44), (-5, -5, 6, 6))
    expected = np.zeros((6, 8))
    for row, col in np.ndindex(6, 8):
        covered = sum(
            any(
                round(b[0]) <= x < round(b[2]) and round(b[1]) <= y < round(b[3]) for b in (ln.box for ln in page.lines)
            )
            for y in range(8 * row, 8 * row + 8)
            for x in range(8 * col, 8 * col + 8)
        )
        expected[row, col] = covered / 64 >= saliency.LEAST_COVER
    np.testing.assert_array_equal(saliency.labels(page), expected)


def test_textures_spare_lines_and_shapes() -> None:
    page = page_of((20, 20, 40, 30))
    for seed, field in enumerate((*TAUGHT, *HELD_OUT)):
        image = on_texture(np.random.default_rng(seed), page, (field,))
        assert image.shape == page.image.shape
        np.testing.assert_array_equal(image[20:30, 20:40], page.image[20:30, 20:40])
        assert image[:, 60].std() + image[44].std() > 3, "the corner is textured"


def test_the_network_is_light_and_its_file_has_the_signature(tmp_path: Path) -> None:
    model = saliency.SaliencyNet().eval()
    assert sum(parameter.numel() for parameter in model.parameters()) < 100_000
    saliency.save(model, tmp_path / "net.onnx")
    runner = OnnxSaliency(tmp_path / "net.onnx", threads=1)
    assert runner.stride_px == saliency.STRIDE
    assert b"saliency.py" not in (tmp_path / "net.onnx").read_bytes(), "paths of the machine that made it"
    pixels = np.random.default_rng(0).random((2, 3, 64, 200), np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(pixels)).numpy()
    np.testing.assert_allclose(runner.run(pixels), expected, atol=1e-5)


def test_training_learns_from_the_generators_boxes(capsys: pytest.CaptureFixture[str]) -> None:
    require_fonts()
    model = saliency.train(steps=25, pages=2)
    pixels, targets = saliency.examples(2, saliency.SEED)
    assert 0.01 < targets.mean() < 0.5
    assert "parameters" in capsys.readouterr().out
    with torch.no_grad():
        found = model(torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255)
    assert found.shape == targets.shape
    assert found.isfinite().all()


def test_what_ships_tells_lines_from_textures_that_it_never_saw() -> None:
    require_fonts()
    shipped = open_bundle(NANO).path("saliency.graph")
    assert b".py" not in shipped.read_bytes()
    runner = OnnxSaliency(shipped, threads=1)
    won = total = 0.0
    for seed in range(4):
        rng = np.random.default_rng((1_700_000, seed))
        page = draw_page(rng, SMALL)
        height, width = page.height // 8 * 8, page.width // 8 * 8
        image = on_texture(rng, page, HELD_OUT)[:height, :width]
        found = runner.run(np.ascontiguousarray(image.transpose(2, 0, 1)[None], np.float32) / np.float32(255))[0]
        flagged = saliency.labels(page)[: height // 8, : width // 8] > 0
        inside, outside = found[flagged], found[~flagged]
        won += float((inside[:, None] > outside[None]).sum())
        total += inside.size * outside.size
    assert won / total > 0.95, "area under the ROC curve"
