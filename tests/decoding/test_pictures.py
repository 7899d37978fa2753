from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from decoding.answer import Heat
from decoding.pictures import Box, cropped, keep_relevant, kept, smooth
from decoding.prompt import Noise, Picture
from tests.decoding.fakes import speckled


def random_heat(similarity: float = 0.4, side: int = 112, grid: int = 7) -> Heat:
    return Heat(np.random.default_rng(grid).random((grid, grid)).astype(np.float32), similarity, side)


def test_smoothing_equals_that_of_the_official_code() -> None:
    """Values of skimage's `resize(order=3, mode="constant")` and scipy's Gaussian, between two min-max scalings."""
    heat = Heat(np.array([[0, 1, 2], [3, 4, 5], [8, 7, 6]], dtype=np.float32), similarity=0.4, side=12)
    expected = [
        [0.0, 0.0008, 0.07297, 0.13385],
        [0.02942, 0.1029, 0.25595, 0.39569],
        [0.30985, 0.5466, 0.60279, 0.70752],
        [0.66968, 1.0, 0.8883, 0.84392],
    ]
    np.testing.assert_allclose(smooth(heat)[::3, ::3], expected, atol=5e-6)


@pytest.mark.parametrize("similarity", [0.1, 0.37, 0.5, 1.0])
@pytest.mark.parametrize(("side", "grid"), [(384, 24), (112, 7), (60, 5)])
def test_half_the_similarity_is_masked(similarity: float, side: int, grid: int) -> None:
    heat = random_heat(similarity, side, grid)
    keep, relevance = kept(heat), smooth(heat)
    cutoff = np.sort(relevance.ravel())[::-1][int(side * side * (1 - similarity / 2))]
    np.testing.assert_array_equal(keep, ~(relevance < cutoff))
    assert 1 - keep.mean() == pytest.approx(similarity / 2, abs=2 / side**2)


@pytest.mark.parametrize("similarity", [0.0, -0.3, -1.0])
def test_a_picture_that_does_not_match_is_left_whole(similarity: float) -> None:
    """A keep ratio of 1 and above would index past the last pixel."""
    assert kept(random_heat(similarity)).mean() > 1 - 1e-4


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, -2.0])
def test_a_constant_map_masks_nothing(value: float) -> None:
    """The official code divides 0 by 0 there, and only by accident masks nothing: nan is not below anything."""
    heat = Heat(np.full((6, 6), value, dtype=np.float32), similarity=0.9, side=96)
    assert kept(heat).all()
    assert keep_relevant(speckled(), heat) == speckled()


def test_relevance_scale_does_not_matter() -> None:
    heat = random_heat()
    np.testing.assert_array_equal(kept(heat), kept(replace(heat, grid=heat.grid * 128 - 8)))


@pytest.mark.parametrize("size", [(200, 50), (31, 77), (112, 112), (1, 1)])
def test_the_mask_follows_the_pictures_own_geometry(size: tuple[int, int]) -> None:
    """Width and height as they were; what stays keeps its value, what goes is black."""
    before, heat = speckled(size=size), random_heat(similarity=1.0, side=113)  # odd: no pixel falls between two
    after = keep_relevant(before, heat)
    assert after.image.size == size
    assert after.image.mode == "RGB"
    old, new = np.asarray(before.image), np.asarray(after.image)
    shown = new.any(axis=-1)
    np.testing.assert_array_equal(new[shown], old[shown])
    rows = (np.arange(size[1]) + 0.5) * heat.side // size[1]
    columns = (np.arange(size[0]) + 0.5) * heat.side // size[0]
    np.testing.assert_array_equal(shown, kept(heat)[np.ix_(rows.astype(int), columns.astype(int))])


def test_the_picture_given_is_not_changed() -> None:
    before = speckled()
    pixels = before.image.tobytes()
    assert keep_relevant(before, random_heat(similarity=1.0)) != before
    assert before.image.tobytes() == pixels


def test_a_masked_picture_keeps_no_pixels_of_its_own() -> None:
    """A request waits with it, and many requests may be about one picture."""
    before, heat = speckled(size=(400, 300)), random_heat(similarity=1.0)
    after = keep_relevant(before, heat)
    assert after.unmasked is before.image
    assert after.mask is not None
    assert after.mask.size == (heat.side, heat.side)
    assert len({before.key, after.key, keep_relevant(before, random_heat(similarity=0.9)).key}) == 3


def test_an_edit_of_a_masked_picture_keeps_the_mask() -> None:
    masked = keep_relevant(speckled(size=(40, 30)), random_heat(similarity=1.0))
    crop = cropped(masked, Box(10, 5, 30, 25))
    np.testing.assert_array_equal(np.asarray(crop.image), np.asarray(masked.image)[5:25, 10:30])


def test_noise_stays_with_the_picture() -> None:
    noisy = Picture(Image.new("RGB", (8, 8), "red")).noised(Noise(500, 1))
    assert keep_relevant(noisy, random_heat()).noise == Noise(500, 1)
