"""The exported tower and projector against LLaVA's own image features, on random weights."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def tiny(layer: int, strategy: str):
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, vision_feature_layer=layer, vision_feature_select_strategy=strategy,
        image_token_index=3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.LlavaForConditionalGeneration(config).eval()


@pytest.mark.parametrize(("layer", "strategy", "patches"), [(-1, "default", 4), (-2, "default", 4), (-2, "full", 5)])
def test_features_equal_transformers(layer: int, strategy: str, patches: int):
    from vlm_edge.models.llava.components import VisionAndProjector

    model = tiny(layer, strategy)
    pixels = torch.randn(3, 3, 28, 28)
    with torch.no_grad():
        features = model.get_image_features(pixels).pooler_output
        measured = VisionAndProjector(model)(pixels)
    assert measured.shape == (3, patches, 48)
    torch.testing.assert_close(measured, torch.stack(list(features)))


def test_the_text_model_alone_gives_the_same_logits():
    from vlm_edge.models.llava.components import text_model

    model = tiny(-1, "default")
    ids = torch.tensor([[5, 9, 11, 40]])
    with torch.no_grad():
        torch.testing.assert_close(text_model(model)(ids).logits, model(ids).logits)
