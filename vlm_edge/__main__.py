"""`python -m vlm_edge`, for machines whose scripts folder is not on the path."""

from __future__ import annotations

from vlm_edge.cli.start import main

main()
