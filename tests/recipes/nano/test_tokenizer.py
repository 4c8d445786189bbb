"""The nano tokenizer: words, characters, locations, and the way back."""

from __future__ import annotations

import pytest

from recipes.nano.questions import PHRASES
from recipes.nano.tokenizer import SPECIAL, build_tokenizer, encode_answer, words
from recipes.nano.vocabulary import COLORS, KEYS, LOCATIONS, NOT_VISIBLE, UNSUPPORTED

TOKENIZER = build_tokenizer()


def test_the_vocabulary_fits_the_model():
    from recipes.nano.model import VOCAB

    assert TOKENIZER.get_vocab_size() <= VOCAB


@pytest.mark.parametrize(
    "answer", ["cg42", "2024-03-17", "1.5", NOT_VISIBLE, UNSUPPORTED, "red", "<box>10,200,480,990</box>", "0"]
)
def test_answers_survive_the_round_trip(answer: str):
    assert TOKENIZER.decode(encode_answer(TOKENIZER, answer)) == answer


def test_every_word_of_every_phrase_is_one_token():
    for forms in PHRASES.values():
        for form in forms:
            for key in (*KEYS, *COLORS):
                tokens = TOKENIZER.encode(form.format(key), add_special_tokens=False).tokens
                assert f"▁{key}" in tokens
    assert set(KEYS) | set(COLORS) <= set(words())


def test_capitals_and_spaces_do_not_matter():
    plain = TOKENIZER.encode("what is the total?", add_special_tokens=False).ids
    for text in ("What is the TOTAL?", "  what   is the\ttotal?", "WHAT IS THE TOTAL?"):
        assert TOKENIZER.encode(text, add_special_tokens=False).ids == plain


def test_numbers_in_a_question_are_characters_never_locations():
    locations = {TOKENIZER.token_to_id(str(location)) for location in LOCATIONS}
    for location in LOCATIONS:
        assert not locations & set(TOKENIZER.encode(f"what is {location}?", add_special_tokens=False).ids)


def test_control_tokens_are_special():
    added = TOKENIZER.get_added_tokens_decoder()
    assert {token.content for token in added.values() if token.special} == set(SPECIAL)


def test_an_answer_outside_the_vocabulary_is_an_error():
    with pytest.raises(ValueError, match="outside the vocabulary"):
        encode_answer(TOKENIZER, "Ä")
