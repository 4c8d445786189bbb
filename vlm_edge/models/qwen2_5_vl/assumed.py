"""What preprocessor_config.json says where config.json comes alone: the limits of the published checkpoints."""

from __future__ import annotations

from vlm_edge.models.packed_settings import assumed_preprocessor as preprocessor

__all__ = ["preprocessor"]
