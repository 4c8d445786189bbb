"""Streaming: whatever way text falls into tokens, the pieces join up to it, and no character comes in halves."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from vlm_edge.pipeline.answering.stream import REPLACEMENT, TextStream

ALPHABET = "ab c\n.é߅€日本🙂👩‍👩‍👧\u0301\u200d"
texts = st.text(st.one_of(st.sampled_from(ALPHABET), st.characters(codec="utf-8")), max_size=40)


class ByteTokens:
    """A vocabulary that is made up for one text: each token stands for some bytes of it."""

    def __init__(self, text: str, cuts: Sequence[int]) -> None:
        data = text.encode()
        ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        self.pieces = [data[a:b] for a, b in pairwise(ends)]
        self.ids = range(len(self.pieces))

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


def streamed(tokens: ByteTokens, stop: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(tokens.decode, stop=stop)
    pieces = []
    for token in tokens.ids:
        pieces.append(stream.push(token))
        if stream.stopped:
            break
    return [*pieces, stream.finish()], stream


def slow_cut(text: str, stop: Sequence[str]) -> str:
    """Letter by letter: as soon as the text so far ends with a stop string, it is cut before the longest such."""
    for end in range(1, len(text) + 1):
        ending = [word for word in stop if text[:end].endswith(word)]
        if ending:
            return text[: end - max(map(len, ending))]
    return text


@settings(max_examples=200, deadline=None)
@given(texts, st.lists(st.integers(0, 200), max_size=60))
def test_any_split_into_tokens_comes_out_as_the_text(text: str, cuts: list[int]) -> None:
    pieces, stream = streamed(ByteTokens(text, cuts))
    assert "".join(pieces) == text == stream.text
    assert REPLACEMENT in text or not any(REPLACEMENT in piece for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(
    st.text("ab🙂\n", max_size=24),
    st.lists(st.integers(0, 60), max_size=40),
    st.lists(st.text("ab🙂\n", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_strings_cut_the_text_wherever_tokens_end(text: str, cuts: list[int], stop: list[str]) -> None:
    pieces, stream = streamed(ByteTokens(text, cuts), stop)
    expected = slow_cut(text, stop)
    assert "".join(pieces) == expected == stream.text
    assert stream.stopped == (expected != text or any(text.endswith(word) and word for word in stop))


def test_text_comes_as_soon_as_it_is_certain() -> None:
    tokens = ByteTokens("ab🙂c", [1, 2, 3, 5, 6])
    assert [len(piece) for piece in tokens.pieces] == [1, 1, 1, 2, 1, 1]
    pieces, _ = streamed(tokens)
    assert pieces == ["a", "b", "", "", "🙂", "c", ""]


def test_text_that_may_begin_a_stop_string_is_held_back_and_no_more() -> None:
    stream = TextStream(lambda ids: "".join("ab<|end|>"[i] for i in ids), stop=("<|end|>",))
    assert [stream.push(i) for i in (0, 2, 3, 1)] == ["a", "", "", "<|b"]
    assert [stream.push(i) for i in (2, 3, 4, 5, 6, 7)] == [""] * 6
    assert not stream.stopped
    assert stream.push(8) == ""
    assert stream.stopped
    assert stream.text == "a<|b"


def test_an_unfinished_stop_string_is_text_after_all() -> None:
    stream = TextStream(lambda ids: "ab"[: len(ids)], stop=("abc",))
    assert [stream.push(0), stream.push(1), stream.finish()] == ["", "", "ab"]


def test_nothing_comes_after_a_stop() -> None:
    stream = TextStream(lambda ids: "x" * len(ids), stop=("xx",))
    assert [stream.push(0), stream.push(0), stream.push(0), stream.finish(), stream.text] == ["", "", "", "", ""]


def test_an_unfinished_character_ends_as_a_replacement_and_invalid_bytes_do_not_block() -> None:
    cut = ByteTokens("a🙂", range(9))
    stream = TextStream(cut.decode)
    assert [stream.push(i) for i in range(3)] == ["a", "", ""]
    assert stream.finish() == REPLACEMENT
    broken = ByteTokens("", [])
    broken.pieces = [b"a", b"\xe2\x82", b"b", b"\xff", b"c"]
    stream = TextStream(broken.decode)
    pieces = [stream.push(i) for i in range(5)]
    assert "".join(pieces) == "a\ufffdb\ufffdc"
    assert pieces[2] == "\ufffdb"


def test_a_replacement_character_in_the_text_itself_is_kept() -> None:
    for text in ("\ufffd", "a\ufffdb", "\ufffd\ufffd"):
        pieces, _ = streamed(ByteTokens(text, range(20)))
        assert "".join(pieces) == text


def test_tokens_without_text_are_passed_over() -> None:
    vocabulary = ["", "a", "", "b"]
    stream = TextStream(lambda ids: "".join(vocabulary[i] for i in ids))
    assert [stream.push(i) for i in (0, 1, 2, 0, 3)] == ["", "a", "", "", "b"]


def byte_level() -> Tokenizer:
    """A byte-level tokenizer of the tokenizers library with one token a byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@pytest.mark.parametrize("text", ["naïve café", "日本語 text", "🙂👩‍👩‍👧 family", " leading and trailing ", "\n\n"])
def test_a_real_byte_level_tokenizer(text: str) -> None:
    tokenizer = byte_level()
    stream = TextStream(lambda ids: str(tokenizer.decode(list(ids))))
    pieces = [stream.push(byte) for byte in text.encode()]
    assert "".join(pieces) + stream.finish() == text
    assert all(piece == "" or piece in text for piece in pieces)


def test_a_decoder_that_drops_the_first_space_drops_only_that() -> None:
    words = ["▁the", "▁red", "▁", "▁circle", "s"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    ids = [0, 1, 3, 4, 2, 0]
    stream = TextStream(lambda part: str(tokenizer.decode(list(part))))
    pieces = [stream.push(i) for i in ids]
    assert "".join(pieces) + stream.finish() == str(tokenizer.decode(ids))


def test_the_work_for_a_token_does_not_grow_with_the_answer() -> None:
    lengths: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        lengths.append(len(ids))
        return "x" * len(ids)

    stream = TextStream(decode)
    rng = random.Random(0)
    for _ in range(500):
        stream.push(rng.randrange(9))
    assert max(lengths) <= 2
