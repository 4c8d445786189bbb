"""mllama (Llama 3.2 Vision): a decoder that reads the image through cross-attention layers. For the planner only.

Its visual tokens never enter the prompt, which neither the prompt builder nor the decode loop can express: `prompt` is
None, it is not exported, and no merge site is declared.
"""

from __future__ import annotations

from vlm_edge.core.contracts import VlmFamily
from vlm_edge.models.mllama.spec import MODEL_TYPES, spec_from_config

FAMILY = VlmFamily(
    name="mllama",
    spec=spec_from_config,
    prompt=None,
    merge_sites=frozenset(),
    model_types=MODEL_TYPES,
)
