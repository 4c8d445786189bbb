"""How many visual tokens a reduction leaves: the count that planner and runtime share."""

from __future__ import annotations


def kept_tokens(tokens: int, keep: float) -> int:
    """How many of a view's `tokens` the fraction `keep` allows: rounded down, at least 1.

    The small term undoes binary rounding: 0.29 * 100 is 28.999999999999996 and means 29.
    """
    return max(1, int(tokens * keep + 1e-9))
