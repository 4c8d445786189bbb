"""Errors: what a user reads of a message that quotes a hostile file."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlm_edge.errors import MOST_CHARS, BadInput, DamagedBundle
from vlm_edge.models.bundle_files import open_tokenizer


def test_a_message_is_kept_as_it_is_up_to_its_limit() -> None:
    text = "x" * MOST_CHARS
    assert BadInput(text, remedy="none").message == text


def test_of_a_longer_message_the_beginning_and_the_end_are_kept() -> None:
    error = BadInput(f"config.json holds {'x' * 100_000}, no number", remedy="none")
    assert error.message.startswith("config.json holds xxx")
    assert error.message.endswith("xxx, no number")
    assert " ... " in error.message
    assert len(error.message) < MOST_CHARS + 10
    assert str(error) == error.message


def test_a_tokenizer_of_one_huge_string_is_not_quoted_in_full(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(f'"{"x" * 50_000}"')
    with pytest.raises(DamagedBundle, match=r"tokenizer.json cannot be read: .*xxx") as caught:
        open_tokenizer(path)
    assert len(caught.value.message) < MOST_CHARS + 10
