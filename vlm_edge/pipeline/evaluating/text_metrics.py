"""How near a text is to the accepted answers: edit similarity (ANLS) and numbers within a tolerance. No I/O."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

ANLS_LEAST = 0.5
"""Below this similarity an answer is another text rather than a misread one, and scores 0."""
NUMBER_TOLERANCE = 0.05
"""Share of the true number by which an answer may be off."""
_NUMBER = re.compile(r"[-+]?(?:\d+(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?(?:e[-+]?\d+)?")
_AROUND = " \t\n$€£¥"


def edit_distance(a: str, b: str) -> int:
    """Fewest characters to insert, remove or replace that turn one text into the other (Levenshtein 1966)."""
    if len(a) < len(b):
        a, b = b, a
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def anls(accepted: Sequence[str], answer: str) -> float:
    """Average normalised Levenshtein similarity of one answer: 1 - distance / length of the longer text, or 0 below ANLS_LEAST.

    The best of the accepted answers counts; case and blanks at both ends do not.  Source: Biten et al. 2019, arXiv 1907.00490.
    """
    return max((_similarity(each.strip().lower(), answer.strip().lower()) for each in accepted), default=0.0)


def _similarity(expected: str, answer: str) -> float:
    longer = max(len(expected), len(answer))
    if longer == 0:
        return 1.0
    if 2 * min(len(expected), len(answer)) < longer:  # then at least half of the longer one has to be typed
        return 0.0
    similarity = 1 - edit_distance(expected, answer) / longer
    return similarity if similarity >= ANLS_LEAST else 0.0


def relaxed_match(accepted: Sequence[str], answer: str) -> bool:
    """Whether an answer is a number within NUMBER_TOLERANCE of an accepted one, or else equals one, case aside.

    A percent sign divides by 100, commas between thousands and a currency sign are passed over; a true 0 must be met exactly.
    Source: the relaxed accuracy of Masry et al. 2022, arXiv 2203.10244.
    """
    given = number_of(answer)
    return any(_near(expected, answer, given) for expected in accepted)


def _near(expected: str, answer: str, given: float | None) -> bool:
    wanted = number_of(expected)
    if wanted is None or given is None:
        return expected.strip().lower() == answer.strip().lower()
    # a hair more than the tolerance, so that 105 is within 5% of 100 in binary too
    return abs(given - wanted) <= NUMBER_TOLERANCE * abs(wanted) * (1 + 1e-12)


def number_of(text: str) -> float | None:
    """The number that a text is; None for any other text.

    Example: "$1,250.50" -> 1250.5, "12%" -> 0.12, "12 apples" -> None.
    """
    bare = text.strip(_AROUND).lower()
    percent = bare.endswith("%")
    bare = bare.removesuffix("%").rstrip()
    if bare.startswith("-"):  # the currency may stand behind the sign
        bare = "-" + bare.removeprefix("-").lstrip(_AROUND)
    if not _NUMBER.fullmatch(bare):
        return None
    value = float(bare.replace(",", ""))
    if not math.isfinite(value):
        return None
    return value / 100 if percent else value
