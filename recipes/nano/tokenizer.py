"""The nano model's tokenizer: whole words for what it understands, characters for everything else."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from .questions import OTHER, PHRASES
from .vocabulary import CHARACTERS, COLORS, KEYS, LOCATIONS, NOT_VISIBLE, PLURALS, SHAPES, UNSUPPORTED

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
IMAGE, GLOBAL, TILE, QUESTION, ANSWER = "<image>", "<global>", "<tile>", "<question>", "<answer>"
SPECIAL = (PAD, BOS, EOS, UNK, IMAGE, GLOBAL, TILE, QUESTION, ANSWER)
PUNCTUATION = "?,:!'/"


def words() -> list[str]:
    """Every word of the phrases, keys, shapes, colours and fixed answers."""
    text = " ".join(f.format("") for forms in PHRASES.values() for f in forms)
    text += " " + " ".join((*OTHER, *KEYS, *SHAPES, *PLURALS.values(), *COLORS, NOT_VISIBLE, UNSUPPORTED))
    cleaned = "".join(c if c.isalpha() else " " for c in text.lower())
    return sorted({word for word in cleaned.split() if len(word) > 1})


def build_tokenizer() -> Tokenizer:
    """A Unigram tokenizer that lower-cases, splits at spaces, and falls back to single characters.

    Location tokens (`10` to `990`) score so low that text never encodes to them; only the model writes them.
    """
    vocabulary: list[tuple[str, float]] = [(token, 0.0) for token in SPECIAL]
    vocabulary += [("<box>", 0.0), ("</box>", 0.0), ("▁", -8.0)]
    vocabulary += [(character, -8.0) for character in CHARACTERS + PUNCTUATION]
    vocabulary += [(f"▁{word}", -4.0) for word in words()]
    vocabulary += [(str(location), -200.0) for location in LOCATIONS]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=SPECIAL.index(UNK), byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in ("<box>", "</box>")])
    return tokenizer


def encode_answer(tokenizer: Tokenizer, answer: str) -> list[int]:
    """Token ids of a true answer: a phrase as words, a box as location tokens, a value as characters."""
    if answer.startswith("<box>"):
        numbers = answer.removeprefix("<box>").removesuffix("</box>").split(",")
        inner = [token for number in numbers for token in (number, ",")][:-1]
        pieces = ["<box>", *inner, "</box>"]
    elif " " in answer or answer in COLORS:
        pieces = [f"▁{word}" for word in answer.split()]
    else:
        pieces = list(answer)
    ids = [tokenizer.token_to_id(piece) for piece in pieces]
    if None in ids:
        raise ValueError(f"answer {answer!r} has a piece outside the vocabulary")
    return ids
