"""Decoders that transformers has inside a vision-language class only, presented as the whole model that a builder expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from transformers import PretrainedConfig, PreTrainedModel, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vlm_edge.errors import BadInput

Whole = tuple[type[PreTrainedModel], PretrainedConfig]
_LEAST_TOWER = {"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "fullatt_block_indexes": [0]}
"""Qwen2.5-VL's; its patches, and with them the kernel that reads pixels, have a published size."""
_OWN_TO_THE_TYPE = {"model_type", "architectures", "transformers_version", "dtype", "tie_word_embeddings"}


def stand_in(config: PretrainedConfig, checkpoint: str) -> Whole:
    """The class and config of a whole model around a text config; raises BadInput where none is known.

    checkpoint: its name, for the message.
    """
    kind = getattr(config, "model_type", "")
    if kind not in _STAND_INS:
        raise BadInput(
            f"{checkpoint}: the text model {kind!r} does not exist apart from its vision-language model",
            remedy="export another model, or its tower alone (--component vision,projector)",
        )
    return _STAND_INS[kind](config)


def _qwen2_5_vl(config: PretrainedConfig) -> Whole:
    """Qwen2-VL's decoder is Qwen2.5-VL's: the same layers, names and three-part positions; only the towers differ."""
    text = {name: value for name, value in config.to_dict().items() if name not in _OWN_TO_THE_TYPE}
    whole = Qwen2_5_VLConfig(text_config=text, vision_config={**_LEAST_TOWER, "out_hidden_size": config.hidden_size})
    return Qwen2_5_VLForConditionalGeneration, whole


_STAND_INS: Mapping[str, Callable[[PretrainedConfig], Whole]] = {
    "qwen2_vl_text": _qwen2_5_vl,
    "qwen2_5_vl_text": _qwen2_5_vl,
}
