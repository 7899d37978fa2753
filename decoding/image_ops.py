"""Functions that make images from images: relevance masks (AGLA), crops (ZoomEye) and noise (VCD)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from decoding.outputs import RelevanceMap
from decoding.prompt import Frame, ImageInput, Noise, limit_size

BLUR = 0.02  # of the side of the matcher's input
MAX_KEPT = 1 - 1e-5
MAX_PADDED_SIDE = 2_048  # pixels; vision towers see far fewer
DIFFUSION_STEPS = 1000
VIEW_MEAN, VIEW_DEVIATION = 0.45, 0.27  # about those of CLIP's training images
HEAT_COLOR = (255, 140, 0)
PAD_COLOR = (122, 116, 104)  # mean of CLIP's training images, which normalization maps to 0


def keep_relevant(image: ImageInput, relevance: RelevanceMap) -> ImageInput:
    """Make the irrelevant pixels of an image black.

    The mask is scaled to the image's own size, so that the model sees both images in the same geometry. The official
    code of AGLA squashes the masked image to the matcher's square and leaves the other one unchanged.

    Args:
        image: The image.
        relevance: Its relevance map.

    Returns:
        The masked image, or the image itself where nothing is masked.
    """
    mask = relevance_mask(relevance)
    return image if mask.all() else replace(image.with_image(image.visible), mask=Image.fromarray(mask))


def relevance_mask(relevance: RelevanceMap) -> NDArray[np.bool_]:
    """Compute which pixels stay: all but the least relevant similarity/2 of them.

    With the pixels in descending order of relevance, the mask drops those strictly below number int(side^2 r), where
    r = min(1 - similarity/2, 1 - 1e-5). It drops nothing where the relevance is constant.

    Args:
        relevance: Relevance map with the matcher's input size as `side`.

    Returns:
        [side, side] mask, true where a pixel stays.
    """
    values = interpolate(relevance)
    kept = min(1 - relevance.similarity / 2, MAX_KEPT)
    index = values.size - 1 - int(values.size * kept)
    threshold = np.partition(values, index, axis=None)[index]
    return np.asarray(values >= threshold)


def interpolate(relevance: RelevanceMap) -> NDArray[np.float64]:
    """Interpolate the grid with cubic splines and blur it: [side, side] in 0 ... 1."""
    grid = normalize(relevance.grid.astype(np.float64))
    zoom = [relevance.input_size / length for length in grid.shape]
    fine = ndimage.zoom(grid, zoom, order=3, mode="grid-constant", cval=0.0, grid_mode=True)
    return normalize(ndimage.gaussian_filter(fine.clip(0.0, 1.0), sigma=BLUR * relevance.input_size))


def normalize(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shift and scale to 0 ... 1; a constant becomes 0."""
    shifted = values - values.min()
    peak = shifted.max()
    return np.asarray(shifted / peak if peak > 0 else shifted)


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """Part of an image, in pixels. `right` and `bottom` are exclusive. Boxes are ordered from left to right."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def from_image(cls, image: ImageInput) -> Box:
        """Return the box of a whole image."""
        return cls(0, 0, *image.size)

    @classmethod
    def around(cls, boxes: Sequence[Box]) -> Box:
        """Return the least box that contains all boxes."""
        return cls(
            min(box.left for box in boxes),
            min(box.top for box in boxes),
            max(box.right for box in boxes),
            max(box.bottom for box in boxes),
        )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.right - self.left, self.bottom - self.top

    def split(self) -> tuple[Box, ...]:
        """Split into two by two boxes, or into a row of four if one side is at least twice the other.

        Returns:
            The four boxes. The last ones of each row and column take the remainder.
        """
        width, height = self.size
        columns, rows = (1, 4) if height >= 2 * width else (4, 1) if width >= 2 * height else (2, 2)
        across = [*(self.left + n * (width // columns) for n in range(columns)), self.right]
        down = [*(self.top + n * (height // rows) for n in range(rows)), self.bottom]
        return tuple(Box(across[x], down[y], across[x + 1], down[y + 1]) for y in range(rows) for x in range(columns))

    def expand(self, factor: float, within: Box) -> Box:
        """Scale about the center, cut at the edges of `within`."""
        dx, dy = (round(length * (factor - 1) / 2) for length in self.size)
        return Box(
            max(self.left - dx, within.left),
            max(self.top - dy, within.top),
            min(self.right + dx, within.right),
            min(self.bottom + dy, within.bottom),
        )

    def widen(self, least: int, factor: float, within: Box) -> Box:
        """Widen each side to `least` pixels, and then scale, about the center. A side of `within` cuts the box."""
        width, height = (int(max(length, least) * factor) for length in self.size)
        left = max((self.left + self.right) // 2 - width // 2, within.left)
        top = max((self.top + self.bottom) // 2 - height // 2, within.top)
        return Box(left, top, min(left + width, within.right), min(top + height, within.bottom))


def crop(image: ImageInput, box: Box) -> ImageInput:
    """Return a part of an image."""
    return image.with_image(image.visible.crop((box.left, box.top, box.right, box.bottom)))


def pad_to_square(image: ImageInput, side: int) -> ImageInput:
    """Put an image into the middle of a grey square of at least `side` pixels.

    Returns:
        The square. If its sides had more than `MAX_PADDED_SIDE` pixels, and it had more pixels than the image, then the
        image is scaled down first.
    """
    shown = image.visible
    side = max(*shown.size, side)
    bound = max(MAX_PADDED_SIDE, math.isqrt(shown.width * shown.height))
    if side > bound:
        width, height = (max(1, round(length * bound / side)) for length in shown.size)
        shown, side = shown.resize((width, height), Image.Resampling.BICUBIC), bound
    canvas = Image.new("RGB", (side, side), PAD_COLOR)
    canvas.paste(shown, ((side - shown.width) // 2, (side - shown.height) // 2))
    return image.with_image(canvas)


def limit_pixels(image: ImageInput) -> Image.Image:
    """Return the visible image, scaled down to at most a megapixel, as a shifted copy is."""
    shown = image.visible
    size = limit_size(shown.size)
    return shown if size == shown.size else shown.resize(size, reducing_gap=2.0)


def draw_frame(image: ImageInput, box: Box, color: str) -> ImageInput:
    """Draw a frame along the edge of a box."""
    frame = Frame(box.left, box.top, box.right, box.bottom, color)
    return replace(image if image.frame is None else image.with_image(image.visible), frame=frame)


@cache
def alpha_schedule() -> Tensor:
    """Compute the share of the signal's variance that is left after each step of VCD's forward diffusion.

    b_i = sigmoid(u_i) (5e-3 - 1e-5) + 1e-5 with u equally spaced on [-6, 6]; alpha_t = prod_{i <= t} (1 - b_i).

    Returns:
        [1000] shares.
    """
    rates = torch.linspace(-6, 6, DIFFUSION_STEPS, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    return (1 - rates).cumprod(dim=0)


def diffuse(pixels: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """Compute sqrt(alpha_t) x + sqrt(1 - alpha_t) eps. The noise is drawn on the CPU, so that devices agree.

    Args:
        pixels: [...] x.
        step: t, from 0 to 999.
        generator: Generator of eps.

    Returns:
        [...] noised pixels in the dtype of x.
    """
    alpha = alpha_schedule()[step].item()
    noise = torch.randn(pixels.shape, generator=generator).to(pixels)
    return math.sqrt(alpha) * pixels + math.sqrt(1 - alpha) * noise


def add_noise(pixels: Tensor, noise: Noise) -> Tensor:
    """Add noise to the normalized pixels of one image.

    Args:
        pixels: [...], as the processor returns them.
        noise: Step of the diffusion, and seed.

    Returns:
        The noised pixels, [...].
    """
    return diffuse(pixels, noise.step, torch.Generator().manual_seed(noise.seed))


def render_noise(image: Image.Image, noise: Noise) -> Image.Image:
    """Draw noise on an image, for a viewer.

    The model sees other noise of the same strength: the engine draws it at the size of the model's input, after the
    normalization of the model.

    Args:
        image: RGB image.
        noise: Step of the diffusion, and seed.

    Returns:
        The noised image, of the same size.
    """
    pixels = (torch.from_numpy(np.array(image, np.float32)) / 255 - VIEW_MEAN) / VIEW_DEVIATION
    shown = (add_noise(pixels, noise) * VIEW_DEVIATION + VIEW_MEAN).clamp(0, 1) * 255
    return Image.fromarray(shown.round().to(torch.uint8).numpy())


def render_relevance(image: Image.Image, relevance: RelevanceMap) -> Image.Image:
    """Colour an image by relevance, for a viewer: orange where it is high, dark where it is low.

    Args:
        image: RGB image.
        relevance: Its relevance map.

    Returns:
        The coloured image, of the same size.
    """
    heat = Image.fromarray((interpolate(relevance) * 255).astype(np.uint8)).resize(image.size)
    low = Image.blend(image, Image.new("RGB", image.size, "black"), 0.6)
    high = Image.blend(image, Image.new("RGB", image.size, HEAT_COLOR), 0.5)
    return Image.composite(high, low, heat)
