"""Qwen2-VL: how images are cut and scaled, by a checkpoint's files alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_edge.models.packed_settings import PackedSettings, packed_settings

ImageSettings = PackedSettings


def settings_from(config: Mapping[str, Any], preprocessor: Mapping[str, Any]) -> PackedSettings:
    """From config.json and preprocessor_config.json; raises BadInput with the field's name."""
    return packed_settings(config, preprocessor, types=("Qwen2VLImageProcessor",))
