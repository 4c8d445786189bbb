"""Text beside the images: what is refused, how it is cut, that summaries fit, and that the decoder's text-only pass is right."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import runnable
from vlm_edge import AskOptions, Pipeline
from vlm_edge.core.resources import resource_dir
from vlm_edge.errors import BadInput
from vlm_edge.pipeline.answering.long_text import MAP, MAX_BYTES, budget_for, condense, read_context, split

QUESTION = "what is the total?"
CONTEXT = 300
RECEIPT = resource_dir("calibration") / "pages" / "receipt.png"


@dataclass
class Words:
    """A decoder whose tokens are words, with 5 more around a prompt; it summarises to its prompt's first words of text."""

    summary: Callable[[str, int], str] = lambda text, most: " ".join(text.split()[:most])
    prompts: list[str] = field(default_factory=list)
    longest: int = 0

    def text_tokens(self, text: str) -> int:
        assert len(text) < 64 * CONTEXT, "a real prompt of this length is refused"
        return 5 + len(text.split())

    def complete(self, text: str, *, new_tokens: int) -> str:
        self.prompts.append(text)
        self.longest = max(self.longest, self.text_tokens(text) + new_tokens)
        return self.summary(text.partition("\n\n")[2], new_tokens)


def words(count: int) -> str:
    draw = random.Random(count)
    return "".join(f"w{i}{draw.choice([' ', '. ', chr(10), chr(10) * 2])}" for i in range(count)).strip()


@pytest.mark.parametrize("count", [1, 59, 60])
def test_a_text_within_its_budget_stays_as_it_is(count: int) -> None:
    model = Words()
    found = condense(words(count), QUESTION, model, budget=60, context=CONTEXT)
    assert (found.text, found.tokens, found.tokens_in_prompt, found.calls) == (words(count), count, count, 0)
    assert model.prompts == []
    assert "text" not in found.to_json()
    assert found.to_json()["summarised"] is False


@pytest.mark.parametrize("count", [61, 500, 5000])
@pytest.mark.parametrize("budget", [16, 60, 200])
def test_a_longer_one_is_summarised_part_by_part_until_it_fits(count: int, budget: int) -> None:
    if count <= budget:
        return
    model = Words()
    steps: list[tuple[int, int]] = []
    found = condense(
        words(count),
        QUESTION,
        model,
        budget=budget,
        context=CONTEXT,
        on_pass=lambda done, total, _: steps.append((done, total)),
    )
    assert 0 < found.tokens_in_prompt == len(found.text.split()) <= budget
    assert model.longest <= CONTEXT
    assert found.tokens == count
    assert found.calls == len(model.prompts)
    assert all(QUESTION in prompt for prompt in model.prompts)
    assert not found.cut
    first = [prompt.partition("\n\n")[2] for prompt in model.prompts if prompt.startswith(MAP[:20])]
    assert " ".join(first).split() == words(count).split()  # every word was read, once
    assert sum(done == total for done, total in steps) == found.rounds
    assert found.to_json()["text"] == found.text


def test_rounds_halve_the_text() -> None:
    model = Words()
    found = condense(words(5000), QUESTION, model, budget=60, context=CONTEXT)
    # 60 words of at least 120 survive a pass, so 5000 words take at most 2 + log2(5000 / 60) rounds
    assert 2 <= found.rounds <= 8


def test_a_decoder_that_says_nothing_or_too_much() -> None:
    silent = condense(words(500), QUESTION, Words(lambda *_: "  "), budget=60, context=CONTEXT)
    assert (silent.text, silent.tokens_in_prompt, silent.rounds) == ("", 0, 1)
    chatty = Words(lambda _, most: " ".join(f"x{i}" for i in range(2 * most)))
    found = condense(words(500), QUESTION, chatty, budget=60, context=CONTEXT)
    assert found.cut
    assert 30 <= found.tokens_in_prompt <= 60
    assert found.text.split()[0] == "x0"


def test_a_context_that_is_too_short_for_summaries() -> None:
    with pytest.raises(BadInput, match="too short to summarise"):
        condense(words(500), QUESTION * 30, Words(), budget=60, context=CONTEXT)


@given(st.text(alphabet="ab .\n", max_size=400), st.integers(1, 60), st.integers(1, 90))
def test_parts_make_the_text_again(text: str, limit: int, most: int) -> None:
    parts = split(text, lambda part: len(part) <= limit, most_chars=most)
    assert "".join(parts) == text
    assert all(0 < len(part) <= min(limit, most) for part in parts)


def test_parts_end_where_a_reader_would_end_them() -> None:
    text = "One two. Three four.\n\nFive six. Seven eight.\nNine"
    assert split(text, lambda part: len(part) <= 26, most_chars=99) == [
        "One two. Three four.\n\n",
        "Five six. Seven eight.\n",
        "Nine",
    ]
    assert split("x" * 10, lambda part: len(part) <= 4, most_chars=99)[0] in {"x" * n for n in (3, 4)}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b" \n\t\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"\x89PNG\r\n\x1a\n", "is no text in UTF-8"),
        ("text".encode("utf-16"), "is no text in UTF-8"),
        (b"MZ\x00\x00text", "is binary"),
        (b"x" * (10 << 20), "10.0 MiB, more than the 2 MiB"),
        (b"x" * (MAX_BYTES + 1), "more than"),
    ],
)
def test_files_that_are_no_text(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "context.txt"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=says) as caught:
        read_context(path)
    assert len(caught.value.message) < 300


def test_files_that_are(tmp_path: Path) -> None:
    path = tmp_path / "context.txt"
    path.write_bytes(b"\xef\xbb\xbf  caf\xc3\xa9\r\n")
    assert read_context(path) == "café"
    with pytest.raises(BadInput, match="cannot be read"):
        read_context(tmp_path / "missing.txt")
    with pytest.raises(BadInput, match="is no file"):
        read_context(tmp_path)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(BadInput, match="is no file"):
            read_context(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("asked", "context", "taken", "budget"),
    [(None, 8192, 1000, 2048), (None, 768, 168, 300), (500, 768, 168, 500), (600, 768, 168, 600)],
)
def test_budgets(asked: int | None, context: int, taken: int, budget: int) -> None:
    assert budget_for(asked, context=context, taken=taken) == budget


@pytest.mark.parametrize(
    ("asked", "taken", "says", "fix"),
    [
        (601, 168, "does not fit", "600 or less"),
        (0, 168, "is not allowed", "16 or more"),
        (None, 760, "does not fit", "without"),
    ],
)
def test_budgets_that_cannot_be(asked: int | None, taken: int, says: str, fix: str) -> None:
    with pytest.raises(BadInput, match=says) as caught:
        budget_for(asked, context=768, taken=taken)
    assert fix in caught.value.remedy


def test_a_text_pass_leaves_questions_about_images_as_they_were() -> None:
    pipeline = Pipeline.load(threads=1)
    before = pipeline.ask(RECEIPT, QUESTION)
    first = pipeline.complete("what is the name?", new_tokens=8)
    assert pipeline.complete("what is the name?", new_tokens=8) == first
    after = pipeline.ask(RECEIPT, QUESTION)
    assert (after.text, after.tokens) == (before.text, before.tokens)
    with pytest.raises(BadInput, match="context is 768"):
        pipeline.complete("what is the name? " * 200, new_tokens=8)
    assert pipeline.ask(RECEIPT, QUESTION).text == before.text


def test_control_tokens_in_a_context_are_told_as_such() -> None:
    with pytest.raises(BadInput, match="the context holds the control token <image>"):
        condense("text with <image> in it", QUESTION, Pipeline.load(threads=1), budget=60, context=768)


def test_what_is_taken_at_least_counts_views_that_are_certain() -> None:
    pipeline = Pipeline.load(threads=1)
    whole = AskOptions(tiling="none", reduce="none", max_new_tokens=10)
    answer = pipeline.ask(RECEIPT, QUESTION, whole)
    assert (
        pipeline.least_tokens([RECEIPT], QUESTION, whole) == answer.tokens.prompt - 1 + 10
    )  # the view's marker is not counted
    assert pipeline.least_tokens([RECEIPT], QUESTION, AskOptions(max_new_tokens=10)) < answer.tokens.prompt + 10


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_text_alone_is_answered_as_transformers_does(family: str, tmp_path: Path) -> None:
    made = runnable.make(family, tmp_path)
    pipeline, engine = made.pipeline()
    text = runnable.QUESTIONS[0]
    inputs = made.inputs(text, [])
    assert pipeline.text_tokens(text) == inputs["input_ids"].shape[1]
    expected, _ = made.generate(inputs, 6)
    engine.logits.clear()
    pipeline.complete(text, new_tokens=6)
    greedy = [int(row.argmax()) for row in engine.logits]
    assert greedy[: len(expected)] == expected
