"""Qwen2-VL's prompt; what it shares with its sister is in models/qwen_prompt.py."""

from __future__ import annotations

from vlm_edge.core.bundle import Bundle
from vlm_edge.models.prompts import FamilyRules
from vlm_edge.models.qwen2_vl.images import prepare, settings_from
from vlm_edge.models.qwen2_vl.spec import spec_from_config
from vlm_edge.models.qwen_prompt import DEFAULT_TEMPLATE, QwenPrompt

RULES = FamilyRules(spec_from_config, settings_from, prepare, DEFAULT_TEMPLATE)


class Qwen2VlPrompt(QwenPrompt):
    """The prompt of one bundle."""

    def __init__(self, bundle: Bundle) -> None:
        """Raises DamagedBundle for files that cannot be read or contradict the manifest."""
        super().__init__(bundle, RULES)
