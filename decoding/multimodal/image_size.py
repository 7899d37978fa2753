"""Tokens and memory of images before they are processed. They follow from the sizes of the images.

A small file can hold millions of pixels of one colour. A processor that keeps the resolution makes tensors of hundreds
of megabytes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

Size = tuple[int, int]  # width and height

PROBE_SIDE = 448  # pixels of the image that is processed once


class ImageSizeEstimator:
    """Estimates what the images of a prompt take, for one processor."""

    def __init__(self, processor: Any) -> None:
        """Process one image, to learn the bytes of its pixels.

        Args:
            processor: Processor of transformers.
        """
        blank = Image.new("RGB", (PROBE_SIDE, PROBE_SIDE))
        pixel_bytes: int = processor.image_processor([blank], return_tensors="pt")["pixel_values"].nbytes
        self._bytes_per_image = pixel_bytes
        self._count: Any = getattr(processor, "_get_num_multimodal_tokens", None) or find_patch_count(processor)
        tokens = self.count_tokens([blank.size])
        if tokens is not None and not matches_prompt(processor, blank, tokens):
            self._count = None
        self._bytes_per_token = pixel_bytes / tokens if tokens else None

    def count_tokens(self, sizes: Sequence[Size]) -> int | None:
        """Count the tokens of images.

        Args:
            sizes: Their sizes.

        Returns:
            The number, 0 for a size that the processor rejects, or None where the processor of transformers has no such
            function, or one that is wrong.
        """
        if self._count is None:
            return None
        try:
            data = self._count(image_sizes=[(height, width) for width, height in sizes])
        except ValueError:  # an extreme aspect ratio, which is refused when the image is processed
            return 0
        return int(sum(data["num_image_tokens"]))

    def estimate_bytes(self, sizes: Sequence[Size], max_tokens: int) -> int:
        """Estimate the bytes of the processed pixels of images.

        Args:
            sizes: Their sizes.
            max_tokens: Number of tokens from which images are refused before they are processed.

        Returns:
            The bytes, 0 for images that are refused. Without a count of tokens, each image is taken to be as large as
            the one that was processed at the start.
        """
        tokens = self.count_tokens(sizes)
        if tokens is not None and tokens >= max_tokens:
            return 0
        if tokens is None or self._bytes_per_token is None:
            return self._bytes_per_image * len(sizes)
        return round(tokens * self._bytes_per_token)


def matches_prompt(processor: Any, image: Image.Image, tokens: int) -> bool:
    """Return whether the prompt of an image has so many tokens.

    The function of LLaVA's processor reads the size of a crop that the image processor may not make. Some processors
    count the tokens around an image, too.
    """
    try:
        ids = processor(text=[get_image_placeholder(processor)], images=[[image]], return_tensors="pt")["input_ids"][0]
    except ValueError:  # the processor takes another text for an image
        return False
    image_id = get_image_token_id(processor)
    return int((ids == image_id).sum()) <= tokens <= len(ids)


def find_patch_count(processor: Any) -> Any:
    """Return a function that counts tokens by patches; None for a processor whose images are no grids of patches.

    It has the signature of `_get_num_multimodal_tokens` of transformers' processors, which some lack.
    """
    image_processor = processor.image_processor
    count_patches = getattr(image_processor, "get_number_of_image_patches", None)
    if count_patches is None or not hasattr(image_processor, "merge_size"):
        return None
    merged = image_processor.merge_size**2

    def count(image_sizes: Sequence[Size]) -> dict[str, list[int]]:
        return {"num_image_tokens": [count_patches(*size, {}) // merged for size in image_sizes]}

    return count


def get_image_token_id(processor: Any) -> int:
    """Return the token that a prompt has for each part of an image. The placeholder in the text may be another one."""
    own = getattr(processor, "image_token_id", None)
    return int(processor.tokenizer.convert_tokens_to_ids(str(processor.image_token)) if own is None else own)


def get_image_placeholder(processor: Any) -> str:
    """Return what stands for an image in the text that a processor reads."""
    return str(getattr(processor, "image_placeholder_token", None) or processor.image_token)
