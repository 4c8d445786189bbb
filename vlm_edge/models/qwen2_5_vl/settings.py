"""Qwen2.5-VL: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.models.packed_settings import PackedSettings, packed_settings

ImageSettings = PackedSettings
# Early checkpoints name a class of their own, which does the same.
_TYPES = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor")


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> PackedSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    return packed_settings(config, preprocessor, types=_TYPES, window_px=112)
