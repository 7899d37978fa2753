"""Pictures made from pictures: one that shows only what matters to the text (AGLA), and parts of one (ZoomEye)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from decoding.answer import Heat
from decoding.prompt import Picture

BLUR = 0.02  # of the matcher's side
MOST_KEPT = 1 - 1e-5
MARGIN = (122, 116, 104)  # the mean of CLIP's training pictures, which is 0 once they are normalised


def keep_relevant(picture: Picture, heat: Heat) -> Picture:
    """The picture with its irrelevant pixels black.

    The mask is brought to the picture's own size, so that the model sees both in the same geometry. The official code
    squashes the masked picture to the matcher's square and leaves the other one as it was.
    """
    shown = kept(heat)
    return picture if shown.all() else replace(picture.showing(picture.image), mask=Image.fromarray(shown))


def kept(heat: Heat) -> NDArray[np.bool_]:
    """[side, side] true where a pixel stays: all but the least relevant similarity/2 of them.

    With the pixels in descending order of relevance, those strictly below number int(side^2 r) go, where
    r = min(1 - similarity/2, 1 - 1e-5). Nothing goes where the matcher has no preference.
    """
    relevance = smooth(heat)
    keep = min(1 - heat.similarity / 2, MOST_KEPT)
    ascending = relevance.size - 1 - int(relevance.size * keep)
    cutoff = np.partition(relevance, ascending, axis=None)[ascending]
    return np.asarray(relevance >= cutoff)


def smooth(heat: Heat) -> NDArray[np.float64]:
    """[side, side] in 0 ... 1: cubic splines between the matcher's patches, then a Gaussian blur."""
    grid = normalised(heat.grid.astype(np.float64))
    zoom = [heat.side / length for length in grid.shape]
    fine = ndimage.zoom(grid, zoom, order=3, mode="grid-constant", cval=0.0, grid_mode=True)
    blurred = ndimage.gaussian_filter(fine.clip(0.0, 1.0), sigma=BLUR * heat.side)
    return normalised(blurred)


def normalised(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shifted and scaled to 0 ... 1; all 0 if constant."""
    shifted = values - values.min()
    peak = shifted.max()
    return np.asarray(shifted / peak if peak > 0 else shifted)


@dataclass(frozen=True, slots=True, order=True)
class Box:
    """A part of a picture, in pixels; right and bottom are the first ones outside. Ordered from left to right."""

    left: int
    top: int
    right: int
    bottom: int

    @classmethod
    def whole(cls, picture: Picture) -> Box:
        return cls(0, 0, *picture.image.size)

    @classmethod
    def around(cls, boxes: Sequence[Box]) -> Box:
        """The least box that holds them all."""
        return cls(
            min(box.left for box in boxes),
            min(box.top for box in boxes),
            max(box.right for box in boxes),
            max(box.bottom for box in boxes),
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.right - self.left, self.bottom - self.top

    def quartered(self) -> tuple[Box, ...]:
        """Two by two; a box twice as long as it is wide, or more, into a row of four. The last ones take the rest."""
        width, height = self.size
        columns, rows = (1, 4) if height >= 2 * width else (4, 1) if width >= 2 * height else (2, 2)
        across = [*(self.left + n * (width // columns) for n in range(columns)), self.right]
        down = [*(self.top + n * (height // rows) for n in range(rows)), self.bottom]
        return tuple(Box(across[x], down[y], across[x + 1], down[y + 1]) for y in range(rows) for x in range(columns))

    def grown(self, factor: float, within: Box) -> Box:
        """About its centre, as far as there is room."""
        dx, dy = (round(length * (factor - 1) / 2) for length in self.size)
        return Box(
            max(self.left - dx, within.left),
            max(self.top - dy, within.top),
            min(self.right + dx, within.right),
            min(self.bottom + dy, within.bottom),
        )


def cropped(picture: Picture, box: Box) -> Picture:
    return picture.showing(picture.image.crop((box.left, box.top, box.right, box.bottom)))


def squared(picture: Picture, side: int) -> Picture:
    """In the middle of a square canvas, at least `side` wide."""
    width, height = picture.image.size
    side = max(width, height, side)
    canvas = Image.new("RGB", (side, side), MARGIN)
    canvas.paste(picture.image, ((side - width) // 2, (side - height) // 2))
    return picture.showing(canvas)


def framed(picture: Picture, box: Box, colour: str) -> Picture:
    """With a frame along the box's edge."""
    image = picture.image.copy()
    corners = (box.left, box.top, box.right - 1, box.bottom - 1)
    ImageDraw.Draw(image).rectangle(corners, outline=colour, width=max(2, max(image.size) // 200))
    return picture.showing(image)
