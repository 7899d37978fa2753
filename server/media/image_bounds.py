"""Bounds on the pixels and on the sides of an image, which are checked before it is decoded."""

from __future__ import annotations

from PIL import Image

from decoding.errors import BadRequest

MAX_PIXELS = 25_000_000  # of one image, and of all images of a request together
# Of a WebP or a CMYK image. Decoding takes 12 to 16 bytes a pixel, and that of other images at most 10.
MAX_COSTLY_PIXELS = MAX_PIXELS // 2
MAX_SIDE = 16_384
MAX_ASPECT_RATIO = 100  # Image processors resize the shorter side to hundreds of pixels, and the longer one with it.
TOO_LARGE = (
    "The image has too many pixels: at most 25 megapixels for all images of a request, "
    "and half as many for a WebP or CMYK image."
)
TOO_LONG = f"The image is too long: each side has at most {MAX_SIDE} pixels."
TOO_NARROW = f"The image is too narrow: the longer side is at most {MAX_ASPECT_RATIO} times the shorter side."


def get_max_pixels(image: Image.Image) -> int:
    """Return the bound on the pixels of an image that has been opened and not decoded."""
    return MAX_COSTLY_PIXELS if image.format == "WEBP" or image.mode == "CMYK" else MAX_PIXELS


def check_pixels(size: tuple[int, int], max_pixels: int, param: str) -> None:
    """Check the number of pixels of an image.

    Args:
        size: Width and height in pixels.
        max_pixels: Most pixels.
        param: Field of the request that holds the image.

    Raises:
        BadRequest: The image has more pixels.
    """
    width, height = size
    if width * height > max_pixels:
        raise BadRequest(TOO_LARGE, param=param, code="image_too_large")


def check_sides(size: tuple[int, int], param: str) -> None:
    """Check the sides of an image.

    Args:
        size: Width and height in pixels, each at least 1.
        param: Field of the request that holds the image.

    Raises:
        BadRequest: A side is longer than `MAX_SIDE`, or the sides differ by more than `MAX_ASPECT_RATIO`.
    """
    if max(size) > MAX_SIDE:
        raise BadRequest(TOO_LONG, param=param, code="image_too_large")
    if max(size) > MAX_ASPECT_RATIO * min(size):
        raise BadRequest(TOO_NARROW, param=param, code="invalid_image_aspect_ratio")
