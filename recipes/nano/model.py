"""The nano model as transformers knows it: a LlavaForConditionalGeneration of about 6.5 million parameters."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from .tokenizer import BOS, EOS, IMAGE, PAD, build_tokenizer
from .train_vision import CONFIG as VISION_CONFIG

MAX_POSITIONS = 1024
DECODER_WIDTH = 256
VOCAB = 384
"""The tokenizer's 256 entries and room to grow. Not 256: onnxruntime-genai's builder takes any layer with as many outputs as
the vocabulary for the lm_head, and here every attention output has 256."""


def build_model() -> LlavaForConditionalGeneration:
    """Fresh weights; every matrix of the decoder has sides that are multiples of 128."""
    token_id = build_tokenizer().token_to_id
    text = LlamaConfig(
        vocab_size=VOCAB, hidden_size=DECODER_WIDTH, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=MAX_POSITIONS, tie_word_embeddings=False,
        pad_token_id=token_id(PAD), bos_token_id=token_id(BOS), eos_token_id=token_id(EOS),
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=VISION_CONFIG.to_dict(), text_config=text.to_dict(), image_token_index=token_id(IMAGE),
        projector_hidden_act="gelu", vision_feature_layer=-1, vision_feature_select_strategy="default",
        image_seq_length=64, tie_word_embeddings=False,
    )  # fmt: skip
    return LlavaForConditionalGeneration(config)


def whiten_projector(model: LlavaForConditionalGeneration, features: torch.Tensor) -> None:
    """Set the projector's first layer so that its outputs on `features` [N, Dv] have zero mean and unit covariance.

    The tower's features have a large mean and a few dominant directions; without this the decoder first spends
    a thousand steps on undoing that.
    """
    layer = model.model.multi_modal_projector.linear_1
    mean = features.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov((features - mean).T))
    rotation = torch.linalg.qr(torch.randn(layer.out_features, features.shape[1]))[0]
    scaled = vectors / values.clamp_min(1e-4 * values.max()).sqrt()
    layer.weight.data = rotation @ scaled.T
    layer.bias.data = -layer.weight.data @ mean
