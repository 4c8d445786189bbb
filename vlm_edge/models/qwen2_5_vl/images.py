"""Qwen2.5-VL: patches at nearly native size in one row; the rules are in models/packed_patches.py."""

from __future__ import annotations

from vlm_edge.models.packed_patches import pack, prepare
from vlm_edge.models.qwen2_5_vl.settings import ImageSettings, settings_from

__all__ = ["ImageSettings", "pack", "prepare", "settings_from"]
