"""From a matcher's heat to a picture that shows only what matters to the text (AGLA, arXiv:2406.12718)."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from decoding.answer import Heat
from decoding.prompt import Picture

BLUR = 0.02  # of the matcher's side
MOST_KEPT = 1 - 1e-5


def keep_relevant(picture: Picture, heat: Heat) -> Picture:
    """The picture with its irrelevant pixels black.

    The mask is brought to the picture's own size, so that the model sees both in the same geometry. The official code
    squashes the masked picture to the matcher's square and leaves the other one as it was.
    """
    mask = Image.fromarray(kept(heat)).resize(picture.image.size, Image.Resampling.NEAREST)
    black = Image.new(picture.image.mode, picture.image.size)
    return replace(picture, image=Image.composite(picture.image, black, mask))


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
