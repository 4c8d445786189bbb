"""What calibration takes where nothing else is asked for: numbers that a plan and the work have to share."""

from __future__ import annotations

SAMPLES = 32
"""Samples of the calibration set."""
SEQLEN = 1024
"""Tokens of the longest sequence, where the model has as many positions."""
HELD_OUT_EVERY = 4
"""Every so many sequences, one is not calibrated on but judged with."""
SEARCH_TOKENS = 512
"""Tokens on which scales are judged, evenly spaced over the calibration set; means and clips use all of them."""
