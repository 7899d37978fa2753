"""Shapes of the model, and its parts before training."""

import torch
from torch import nn
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from embedded.data.categories import NAMES
from embedded.data.renderer import SIZE

PATCH = 14
GRID = SIZE // PATCH
IMAGE_TOKENS = GRID * GRID
VISION_WIDTH, WIDTH = 192, 256
VISION_HEADS = 6
PIXEL_MEAN, PIXEL_STD = 0.5, 0.27


def build_vision_config() -> CLIPVisionConfig:
    """Return the configuration of the CLIP tower."""
    return CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=VISION_HEADS,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=VISION_WIDTH,
        hidden_act="gelu_pytorch_tanh",
    )


def build_language_config(vocabulary: int) -> LlamaConfig:
    """Return the configuration of the Llama language model."""
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=WIDTH,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=8,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.04,
    )


def build_llava(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Build a LLaVA model with random weights."""
    config = LlavaConfig(
        vision_config=build_vision_config(),
        text_config=build_language_config(len(tokenizer)),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projector_hidden_act="gelu",
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=IMAGE_TOKENS,
        multimodal_projector_bias=True,
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    # the flash kernel for CPUs is twice as slow as plain attention at 65 tokens
    model.model.vision_tower.set_attn_implementation("eager")
    return model


class Projector(nn.Module):
    """LLaVA's projector, with the same names and shapes, so that its weights can be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(VISION_WIDTH, WIDTH)
        self.linear_2 = nn.Linear(WIDTH, WIDTH)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project features [..., 192] to image tokens [..., 256]."""
        projected: torch.Tensor = self.linear_2(nn.functional.gelu(self.linear_1(features)))
        return projected


def build_tower() -> CLIPVisionModel:
    """Build a CLIP tower with random weights."""
    return CLIPVisionModel._from_config(build_vision_config(), attn_implementation="eager")


def patch_features(tower: CLIPVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """Return the features [batch, 64, 192] that LLaVA reads: the last layer before its norm, without class token."""
    features: torch.Tensor = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    return features


def build_class_vectors() -> tuple[torch.Tensor, torch.Tensor]:
    """Return a fixed direction per category in the language model's input, and the vector of an empty patch.

    The tower learns to write these vectors while the language model learns to read them.

    Returns:
        Vectors [48, 256] and [256].
    """
    generator = torch.Generator().manual_seed(7)
    orthonormal, _ = torch.linalg.qr(torch.randn(WIDTH, len(NAMES), generator=generator))
    return orthonormal.T.contiguous() * 1.6, torch.randn(WIDTH, generator=generator) * 0.05
