"""Reading every tile: sequences that cover a page, answers equal to the pipeline's, votes, and a log that is continued."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import every_tile
from benchmarks.every_tile import PageAnswers, Reader, read_log, read_page, sequences, vote
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.bundle import open_bundle
from vlm_edge.pipeline.embedded import NANO
from vlm_edge.pipeline.evaluating.rows import EvalRow, read_rows
from vlm_edge.vision.tiling import strips

PAGES = Path(__file__).parents[2] / "calibration/pages"
SIDE = 112


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader(open_bundle(NANO))


@pytest.mark.parametrize("size", [(1344, 896), (1000, 777), (500, 1792), (113, 300), (112, 112), (90, 200)])
@pytest.mark.parametrize("way", every_tile.WAYS)
def test_every_pixel_lies_in_a_sequence(size: tuple[int, int], way: str) -> None:
    covered = np.zeros(size[::-1], bool)
    for tiles in sequences(way, size, SIDE):
        assert 1 <= len(tiles) <= (6 if way == "longest" else 1)
        for tile in tiles:
            assert 0 <= tile.x0 < tile.x1 <= size[0]
            assert 0 <= tile.y0 < tile.y1 <= size[1]
            covered[tile.y0 : tile.y1, tile.x0 : tile.x1] = True
    assert covered.all()


@pytest.mark.parametrize("size", [(1403, 1111), (896, 896), (1792, 1680), (1001, 1345), (900, 1009), (1200, 1120)])
def test_every_short_line_is_whole_in_two_tiles_that_the_model_reads_as_one(size: tuple[int, int]) -> None:
    boxes = []
    for tiles in sequences("longest", size, SIDE):
        assert list(strips(tiles)) == [(0, 1), (2, 3), (4, 5)]
        boxes += [(a.x0, a.y0, b.x1, b.y1) for a, b in itertools.pairwise(tiles) if a.x1 == b.x0]
    rng = np.random.default_rng(0)
    for _ in range(500):
        width, height = int(rng.integers(20, SIDE + 1)), int(rng.integers(8, 20))
        x, y = int(rng.integers(0, size[0] - width)), int(rng.integers(0, size[1] - height))
        assert any(x0 <= x and y0 <= y and x + width <= x1 and y + height <= y1 for x0, y0, x1, y1 in boxes)


def test_answers_are_those_of_the_pipeline(reader: Reader) -> None:
    page = PAGES / "receipt.png"
    pipeline = Pipeline.load()
    with Image.open(page) as image:
        pixels = np.asarray(image.convert("RGB"))
    size = (pixels.shape[1], pixels.shape[0])
    asked = ["what is the total?", "how many circles are there?", "what is the ref?"]
    tiles = pipeline.ask(page, asked[0]).tiles
    options = AskOptions(reduce="none", tiles=tuple(tile.box for tile in tiles))
    views = [every_tile.global_view(pixels, SIDE), *(every_tile.crop(pixels, tile, SIDE) for tile in tiles)]
    found = reader.answers(reader.features(views), tiles, size, asked)
    assert found == [pipeline.ask(page, question, options).text for question in asked]
    assert len(set(found)) == 3


def test_the_commonest_answer_that_says_something_wins() -> None:
    assert vote({"not visible": 90, "12": 2, "13": 1}) == "12"
    assert vote({"a": 1, "b": 1}) == "a"
    assert vote({"not visible": 3, "cannot answer": 1}) == "not visible"


def test_a_page_that_is_logged_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reader: Reader
) -> None:
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (130, 240, 3), np.uint8)).save(tmp_path / name)
    rows = [
        {"image": name, "question": "what is the tax?", "answer": "1", "task": "value"} for name in ("a.png", "b.png")
    ]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, read = tmp_path / "every.jsonl", []

    def counted(_reader: Reader, way: str, root: Path, image: str, own: list[EvalRow]) -> PageAnswers:
        read.append((image, way))
        return read_page(reader, way, root, image, own)

    monkeypatch.setattr(every_tile, "read_page", counted)
    every_tile.measure(tmp_path, out)
    whole = out.read_bytes()
    assert [(page.image, page.way) for page in read_log(out)] == read
    out.write_bytes(whole[:-20])
    every_tile.measure(tmp_path, out)
    assert read[4:] == [("b.png", "single")]
    assert out.read_bytes() == whole
    assert {page.sequences for page in read_log(out) if page.way == "single"} == {6}
    assert read_rows(tmp_path / "questions.jsonl")[0].question == read_log(out)[0].answers[0][0]
