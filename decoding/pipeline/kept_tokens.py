"""Prompt tokens that a branch sees: all text, and the image tokens that its strategy's `keep_image_tokens` keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from decoding.errors import StrategyFailed
from decoding.pipeline.composition import attribute_errors
from decoding.tensor_hooks import TensorHooks, Tensors


def find_kept_tokens(
    strategy: TensorHooks, state: Tensors, image_token_index: Tensor, num_image_tokens: int, num_layers: int
) -> Tensor | None:
    """Find the tokens of a prompt that a branch of the strategy sees.

    Args:
        strategy: The strategy.
        state: Its state.
        image_token_index: [prompt] index of the image token; -1 for text.
        num_image_tokens: Number of image tokens of the prompt.
        num_layers: Layers of the model.

    Returns:
        [layers, prompt] true where the branch sees a token, on the device of `image_token_index`; None if it sees all.
        `StrategyFailed` names the strategy if its hook raises, or if its mask is not bool [layers, image tokens].
    """
    with attribute_errors(strategy):
        kept = strategy.keep_image_tokens(state)
    if kept is None:
        return None
    check_kept_mask(strategy, kept, [num_layers, num_image_tokens])
    if num_image_tokens == 0:  # a mask without columns cannot be indexed
        return None
    return kept.to(image_token_index.device)[:, image_token_index.clamp(min=0)] | (image_token_index < 0)


def check_kept_mask(strategy: TensorHooks, kept: object, shape: list[int]) -> None:
    """Check the result of a `keep_image_tokens` hook.

    Args:
        strategy: The strategy.
        kept: The result. A bool tensor [layers, image tokens] is expected.
        shape: The expected shape.

    Raises:
        StrategyFailed: The result is no tensor, or has another dtype or shape.
    """
    if not isinstance(kept, Tensor):
        found, expected = type(kept).__name__, "a tensor"
    elif kept.dtype != torch.bool:
        found, expected = str(kept.dtype), str(torch.bool)
    else:
        found, expected = str(list(kept.shape)), str(shape)
    if found != expected:
        raise StrategyFailed(strategy.name, f"returned {found} from `keep_image_tokens` instead of {expected}")


def index_image_tokens(is_image: Tensor) -> Tensor:
    """Index the image tokens of a prompt from 0 on. Text is -1.

    Args:
        is_image: [prompt] true at image tokens.

    Returns:
        [prompt] index.
    """
    return torch.where(is_image, is_image.cumsum(0) - 1, -1)
