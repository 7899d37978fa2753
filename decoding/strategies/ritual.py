"""Random image transformations: add logits computed on a transformed image."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from random import Random
from typing import Annotated, Literal

import numpy as np
from PIL import Image, ImageEnhance
from pydantic import Field
from scipy import ndimage
from torch import Tensor

from decoding.image_ops import limit_pixels
from decoding.logits_ops import add
from decoding.parameters import Plausibility
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest, ImageInput
from decoding.strategy import PER_ROW, TEXT_SIDE, Step

CROP_SIDE = 336  # pixels; the input of LLaVA-1.5
CROP_AREA, CROP_RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
CROP_TRIES = 10
BLUR_RADIUS = 6  # pixels of a kernel of 13 on each side of its center
BLUR_SIGMA = (1.5, 2.0)


class RITUAL(PlausibleContrast):
    """z_f = z + alpha z_T where p(w) >= beta max p, -inf elsewhere.

    z_T, [vocab], comes from the same text and transformed images. Each image has one transformation:

    - `horizontal_flip` and `vertical_flip`;
    - `rotate`: by an angle uniform in -180 ... 180 degrees, nearest pixel, with black corners;
    - `color_jitter`: brightness, contrast and saturation by factors uniform in 0 ... 2, and hue by a shift uniform in
      -0.5 ... 0.5 of the circle, in a random order;
    - `gaussian_blur`: a kernel of 13 pixels with sigma uniform in 1.5 ... 2;
    - `crop`: an area of 0.08 ... 1 with a ratio of 3/4 ... 4/3, scaled to 336 x 336;
    - `random`: one of these six, each as likely.

    Where both branches agree, the method is `sharpen` with scale 1 + alpha: sampling at temperature 1/4 by default.

    Source: Woo et al., arXiv:2405.17821.

    Deviations from the official code:
    - The random numbers follow from `seed`, the request's own seed, the image and the question, so that an answer can
      be repeated. The code draws them anew for each question.
    - The image is transformed at no more than a megapixel.
    - Greedy decoding is changed too. The code patches `sample()` only, and runs the plain model without sampling.
    - RITUAL+, where the model chooses the transformation, has no published code and is left out. A client can ask
      the model and set `transformation`.
    """

    name = "ritual"
    paper = "arXiv:2405.17821"
    official_code = "sangminwoo/RITUAL, MIT"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Annotated[
        float, Field(ge=0, le=100, description="Weight of the transformed image; 0 turns it off."), PER_ROW
    ] = 3.0
    beta: Plausibility = 0.1
    transformation: Annotated[
        Literal["random", "horizontal_flip", "vertical_flip", "rotate", "color_jitter", "gaussian_blur", "crop"],
        Field(description="Transformation of each image."),
        TEXT_SIDE,
    ] = "random"
    seed: Annotated[
        int,
        Field(ge=0, lt=2**31, description="Seed of the transformations; the request's own seed is added."),
        TEXT_SIDE,
    ] = 0

    def count_image_copies(self) -> int:
        return 1

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        seed = self.seed + (request.sampling.seed or 0)

        def transform(image: ImageInput) -> ImageInput:
            digest = hashlib.sha256(f"{seed} {image.key} {request.prompt.question}".encode()).digest()
            random = Random(int.from_bytes(digest))
            name = random.choice(sorted(TRANSFORMATIONS)) if self.transformation == "random" else self.transformation
            return image.with_image(TRANSFORMATIONS[name](limit_pixels(image), random))

        return request.with_branch("transformed", request.prompt.map_images(transform))

    def contrast(self, step: Step) -> Tensor:
        return add(step.scores, step.branches["transformed"], self.alpha)


def flip_horizontally(image: Image.Image, _: Random) -> Image.Image:
    """Exchange left and right."""
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


def flip_vertically(image: Image.Image, _: Random) -> Image.Image:
    """Exchange top and bottom."""
    return image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)


def rotate(image: Image.Image, random: Random) -> Image.Image:
    """Rotate about the center. The size stays."""
    return image.rotate(random.uniform(-180, 180), Image.Resampling.NEAREST)


def jitter_colors(image: Image.Image, random: Random) -> Image.Image:
    """Change brightness, contrast, saturation and hue, in a random order."""
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    factors = [random.uniform(0, 2) for _ in enhancers]
    hue = random.uniform(-0.5, 0.5)
    for number in random.sample(range(4), 4):
        image = shift_hue(image, hue) if number == 3 else enhancers[number](image).enhance(factors[number])
    return image


def shift_hue(image: Image.Image, share: float) -> Image.Image:
    """Shift the hue by a share of its circle."""
    hue, saturation, value = image.convert("HSV").split()
    shifted = Image.fromarray(np.asarray(hue) + np.uint8(round(share * 255) % 256))
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")


def blur(image: Image.Image, random: Random) -> Image.Image:
    """Blur with a Gaussian kernel. Pixels are mirrored at the edges."""
    sigma = random.uniform(*BLUR_SIGMA)
    pixels = np.asarray(image, dtype=np.float32)
    blurred = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="mirror", radius=(BLUR_RADIUS, BLUR_RADIUS, 0))
    return Image.fromarray(np.rint(blurred).astype(np.uint8))


def crop_at_random(image: Image.Image, random: Random) -> Image.Image:
    """Scale a random part to the input of the model."""
    width, height = choose_crop_size(image.size, random)
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize((CROP_SIDE, CROP_SIDE), Image.Resampling.BILINEAR, box=box)


def choose_crop_size(size: tuple[int, int], random: Random) -> tuple[int, int]:
    """Draw the size of a crop. After too many that do not fit, it is the largest part whose ratio is allowed."""
    width, height = size
    for _ in range(CROP_TRIES):
        area = width * height * random.uniform(*CROP_AREA)
        ratio = math.exp(random.uniform(math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])))
        crop = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop[0] <= width and 0 < crop[1] <= height:
            return crop
    low, high = CROP_RATIO
    ratio = min(max(width / height, low), high)
    return min(width, max(1, round(height * ratio))), min(height, max(1, round(width / ratio)))


TRANSFORMATIONS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "horizontal_flip": flip_horizontally,
    "vertical_flip": flip_vertically,
    "rotate": rotate,
    "color_jitter": jitter_colors,
    "gaussian_blur": blur,
    "crop": crop_at_random,
}
