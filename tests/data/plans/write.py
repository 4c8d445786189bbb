"""Write the golden reports again, after a look at what changes: python -m tests.data.plans.write"""

from __future__ import annotations

import json

from tests.pipeline.planning.test_plan_report import CASES, GOLDEN, rounded
from vlm_edge.pipeline.planning.plan import make_report, to_json

for case, (model, options) in CASES.items():
    plain = rounded(to_json(make_report(model, options), "vlm-edge plan ..."))
    (GOLDEN / f"{case}.json").write_text(json.dumps(plain, indent=1) + "\n", "utf-8")
