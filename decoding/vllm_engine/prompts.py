"""From an encoded prompt to what vLLM takes: token ids, and each picture's pixels, place and name.

The prompt is read by the encoder that the transformers engine uses, so that both engines see the same. vLLM's own
processor has no part in it, and neither has its cache, which would hide a picture's pixels from us.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

from decoding.encoder import Encoded
from decoding.prompt import Picture

IMAGE = "image"


class Inputs:
    """For one model. `image_token` is the id that stands for a piece of a picture in a prompt."""

    def __init__(self, model_config: Any, image_token: int) -> None:
        self.image_token = image_token
        self.dtype: torch.dtype = model_config.dtype
        self._processor = MULTIMODAL_REGISTRY.create_processor(model_config)

    def of(self, encoded: Encoded, pictures: Sequence[Picture], salt: str | None = None) -> Any:
        """`salt` keeps cached keys and values apart from those of prompts without it, or with another."""
        ids: list[int] = encoded.ids.tolist()
        if not pictures:
            return tokens_input(ids, cache_salt=salt)
        extras = BatchFeature({name: self._cast(tensor) for name, tensor in encoded.extras.items()})
        fields = self._processor._get_mm_fields_config(extras, {})
        items = MultiModalKwargsItems.from_hf_inputs(extras, fields)
        places = placed(encoded.ids == self.image_token, len(pictures))
        return mm_input(ids, items, {IMAGE: [picture.key for picture in pictures]}, {IMAGE: places}, cache_salt=salt)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def placed(is_picture: Tensor, pictures: int) -> list[PlaceholderRange]:
    """Where each picture stands. `is_picture`: [length].

    A picture is a run of picture tokens; runs that touch each other are of pictures of one size.

    Raises:
        ValueError: the tokens cannot be told apart by picture.
    """
    runs: list[tuple[int, int]] = []
    edges = torch.diff(
        is_picture.int(), prepend=torch.zeros(1, dtype=torch.int), append=torch.zeros(1, dtype=torch.int)
    )
    for start, end in zip(
        (edges == 1).nonzero().flatten().tolist(), (edges == -1).nonzero().flatten().tolist(), strict=True
    ):
        runs.append((start, end))
    if len(runs) != pictures:
        total = int(is_picture.sum())
        length, rest = divmod(total, pictures)
        if rest or any((end - start) % length for start, end in runs):
            raise ValueError("The pictures of the prompt cannot be told apart.")
        runs = [(at, at + length) for start, end in runs for at in range(start, end, length)]
    return [PlaceholderRange(offset=start, length=end - start) for start, end in runs]
