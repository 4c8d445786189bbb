"""Write the golden page again, after a look at what changes: python -m tests.data.quantize.write"""

from __future__ import annotations

from tests.pipeline.quantizing.test_page import GOLDEN, report
from vlm_edge.pipeline.quantizing.page import page

GOLDEN.write_text(page(report()), "utf-8")
