"""The image tokens of a prompt in vLLM's model runner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from decoding.pipeline.attention_hooks import find_question_start
from decoding.pipeline.kept_tokens import index_image_tokens


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """Image tokens of a prompt, on the CPU.

    Attributes:
        index: [prompt] index from 0 on; -1 for text.
        count: Number of image tokens.
        end: Position after the last of them; the length of a prompt without images.
    """

    index: Tensor
    count: int
    end: int

    def compute_positions(self) -> Tensor:
        """Return the [count] positions of the image tokens."""
        targets = torch.where(self.index < 0, self.count, self.index)  # all text goes to one place, which is cut off
        positions = torch.zeros(self.count + 1, dtype=torch.long)
        return positions.scatter(0, targets, torch.arange(len(self.index)))[: self.count]


FindImageTokens = Callable[[str], ImageTokens]  # of a request id


def find_image_tokens(request: Any) -> ImageTokens:
    """Find the image tokens of a prompt.

    Args:
        request: Request in vLLM's model runner.

    Returns:
        The image tokens.
    """
    is_image = torch.zeros(request.num_prompt_tokens, dtype=torch.bool)
    for feature in request.mm_features:
        place = feature.mm_position
        own = slice(place.offset, place.offset + place.length)
        is_image[own] = True if place.is_embed is None else place.is_embed
    return ImageTokens(index_image_tokens(is_image), int(is_image.sum()), find_question_start(is_image))
