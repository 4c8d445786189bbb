"""Qwen2-VL: patches at nearly native size in one row; the rules are in models/packed_patches.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.models.packed_patches import PackedSettings, pack, packed_settings, prepare

__all__ = ["ImageSettings", "pack", "prepare", "settings_from"]

ImageSettings = PackedSettings


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> PackedSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    return packed_settings(config, preprocessor, types=("Qwen2VLImageProcessor",))
