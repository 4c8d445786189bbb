"""The sequences are what the nano model was trained to read: it answers from them."""

from __future__ import annotations

import pytest
import torch

from benchmarks.nano_sequences import HELD_OUT_SEED, Asked, questions
from benchmarks.packed_questions import answers
from benchmarks.quantize_nano import CHECKPOINT, decoder
from recipes.nano import fonts


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    try:
        fonts.check_fonts()
    except fonts.FontsMissing as missing:
        pytest.skip(str(missing))
    return list(questions(20, HELD_OUT_SEED))


def test_the_model_answers_from_them(asked: list[Asked]) -> None:
    found = answers(decoder(CHECKPOINT), asked)
    assert found.exact.float().mean() > 0.6  # 0.81 of 2,200
    blind = [Asked(one.prefix[:1], one.own, one.answer, one.task, one.page) for one in asked]
    assert answers(decoder(CHECKPOINT), blind).exact.sum() < found.exact.sum()


def test_questions_about_a_page_share_what_is_seen_of_it(asked: list[Asked]) -> None:
    pages = {one.page: one.prefix for one in asked}
    assert len(pages) > 1
    assert all(one.prefix is pages[one.page] for one in asked)
    assert len({one.task for one in asked}) > 3
    place = asked[0].sequence().placement
    assert place.length == len(asked[0].hidden)
    assert place.judged_from == len(asked[0].prefix) - 1


def test_without_pages_the_questions_stay(asked: list[Asked]) -> None:
    for one, blind in zip(asked[:5], questions(5, HELD_OUT_SEED, images=False), strict=True):
        assert torch.equal(blind.own, one.own)
        assert blind.answer == one.answer
        assert torch.equal(blind.prefix, one.prefix[:1])
