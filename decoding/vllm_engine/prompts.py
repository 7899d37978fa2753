"""From an encoded prompt to what vLLM takes: token ids, and each picture's pixels, place and name.

The prompt is read by the encoder that the transformers engine uses, so that both engines see the same. vLLM's own
processor has no part in it, and neither has its cache, which would hide a picture's pixels from us.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

from decoding.encoder import Encoded, Encoder
from decoding.errors import BadRequest
from decoding.prompt import Picture

IMAGE = "image"
COUNTS = ("num_patches", "image_num_patches")  # what its models call the parts of each picture


class Inputs:
    """For one model. `image_token` is the id that stands for a piece of a picture in a prompt."""

    def __init__(self, model_config: Any, encoder: Encoder, image_token: int) -> None:
        self.encoder = encoder
        self.image_token = image_token
        self.dtype: torch.dtype = model_config.dtype
        self._processor = MULTIMODAL_REGISTRY.create_processor(model_config)

    def of(self, encoded: Encoded, pictures: Sequence[Picture], salt: str | None = None) -> Any:
        """`salt` keeps cached keys and values apart from those of prompts without it, or with another."""
        ids: list[int] = encoded.ids.tolist()
        if not pictures:
            return tokens_input(ids, cache_salt=salt)
        sizes = self.encoder.sizes(encoded.extras, pictures)
        extras = BatchFeature(self._extras(encoded, sizes))
        fields = self._processor._get_mm_fields_config(extras, {})
        items = MultiModalKwargsItems.from_hf_inputs(extras, fields)
        places = placed(encoded.ids == self.image_token, sizes)
        return mm_input(ids, items, {IMAGE: [picture.key for picture in pictures]}, {IMAGE: places}, cache_salt=salt)

    def _extras(self, encoded: Encoded, sizes: Sequence[int]) -> dict[str, Tensor]:
        """As vLLM's processors leave them: no axis for the prompt, and of each picture how many parts it was cut into.

        What a model has no use for is passed over by the description of its fields.
        """
        joined = self.encoder.family.picture_axis == 1
        extras = {name: self._cast(tensor[0] if joined else tensor) for name, tensor in encoded.extras.items()}
        return {
            **extras,
            **dict.fromkeys(COUNTS, torch.tensor(sizes)),
            "image_token_id": torch.tensor(self.image_token),
        }

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


def placed(is_picture: Tensor, sizes: Sequence[int]) -> list[PlaceholderRange]:
    """Where each picture stands. `is_picture`: [length]; `sizes`: parts that each picture was cut into.

    A picture is a run of picture tokens; or its parts are, with their names between them; or runs that touch each other
    are of pictures of one size.

    Raises:
        BadRequest: the tokens cannot be told apart by picture.
    """
    edges = torch.diff(is_picture.int(), prepend=torch.zeros(1), append=torch.zeros(1))
    starts, ends = ((edges == sign).nonzero().flatten().tolist() for sign in (1, -1))
    runs: list[tuple[int, int]] = list(zip(starts, ends, strict=True))
    pictures = len(sizes)
    if len(runs) == sum(sizes) != pictures:
        firsts = list(accumulate(sizes, initial=0))
        runs = [(runs[first][0], runs[after - 1][1]) for first, after in pairwise(firsts)]
    elif len(runs) != pictures:
        length, rest = divmod(int(is_picture.sum()), pictures)
        if rest or any((end - start) % length for start, end in runs):
            raise BadRequest("The pictures cannot be told apart: put text between them.", param="messages")
        runs = [(at, at + length) for start, end in runs for at in range(start, end, length)]
    return [place(is_picture, start, end) for start, end in runs]


def place(is_picture: Tensor, start: int, end: int) -> PlaceholderRange:
    own = is_picture[start:end]
    return PlaceholderRange(offset=start, length=end - start, is_embed=None if own.all() else own)
