"""Image processing that copies less. The results are equal to those of transformers, to the bit.

The PIL backend converts a whole image to an array and back to a PIL image before it resizes it, which takes 240 MB for
25 megapixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MIN_PIXELS = 2_000_000  # least size of an image that is processed in strips
STRIP_PIXELS = 1 << 20


def process_in_strips(image_processor: Any) -> None:
    """Let an image processor of the PIL backend convert large images in strips, and resize them by channel.

    Other backends stay as they are.

    Args:
        image_processor: Image processor of transformers. Its class is replaced by a subclass.
    """
    if getattr(image_processor, "backend", None) == "pil":
        base = type(image_processor)
        image_processor.__class__ = type(base.__name__, (StripImageProcessorMixin, base), {})


class StripImageProcessorMixin:
    """Mixin for image processors of the PIL backend."""

    def process_image(self, image: Any, *args: Any, **options: Any) -> Any:
        """Convert an image to an array with channels first."""
        if isinstance(image, Image.Image) and image.mode == "RGB" and image.width * image.height >= MIN_PIXELS:
            if options.get("input_data_format") is None:
                options["input_data_format"] = "channels_last"
            image = to_array(image)
        return super().process_image(image, *args, **options)  # type: ignore[misc]

    def resize(self, image: Any, *args: Any, **options: Any) -> Any:
        """Resize an array with channels first."""
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[0] != 3 or image[0].size < MIN_PIXELS:
            return super().resize(image, *args, **options)  # type: ignore[misc]
        channels = (image[channel : channel + 1] for channel in range(3))
        return np.concatenate([super(StripImageProcessorMixin, self).resize(one, *args, **options) for one in channels])  # type: ignore[misc]


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Convert an RGB image to an array, [height, width, 3], in strips."""
    result = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        result[top : top + rows] = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
    return result
