import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from decoding.image_ops import (
    Box,
    add_noise,
    alpha_schedule,
    crop,
    diffuse,
    draw_frame,
    interpolate,
    keep_relevant,
    pad_to_square,
    relevance_mask,
)
from decoding.outputs import RelevanceMap
from decoding.prompt import SHIFT_COLOR, ImageInput, Noise, Shift
from tests.decoding.fakes import random_image


def make_relevance_map(similarity: float = 0.4, side: int = 112, grid: int = 7) -> RelevanceMap:
    return RelevanceMap(np.random.default_rng(grid).random((grid, grid)).astype(np.float32), similarity, side)


def test_interpolation_equals_the_official_code() -> None:
    """Values of skimage's `resize(order=3, mode="constant")` and scipy's Gaussian, between two min-max scalings."""
    relevance = RelevanceMap(
        np.array([[0, 1, 2], [3, 4, 5], [8, 7, 6]], dtype=np.float32), similarity=0.4, input_size=12
    )
    expected = [
        [0.0, 0.0008, 0.07297, 0.13385],
        [0.02942, 0.1029, 0.25595, 0.39569],
        [0.30985, 0.5466, 0.60279, 0.70752],
        [0.66968, 1.0, 0.8883, 0.84392],
    ]
    np.testing.assert_allclose(interpolate(relevance)[::3, ::3], expected, atol=5e-6)


@pytest.mark.parametrize("similarity", [0.1, 0.37, 0.5, 1.0])
@pytest.mark.parametrize(("side", "grid"), [(384, 24), (112, 7), (60, 5)])
def test_masked_share_is_half_the_similarity(similarity: float, side: int, grid: int) -> None:
    relevance = make_relevance_map(similarity, side, grid)
    keep, relevance = relevance_mask(relevance), interpolate(relevance)
    cutoff = np.sort(relevance.ravel())[::-1][int(side * side * (1 - similarity / 2))]
    np.testing.assert_array_equal(keep, ~(relevance < cutoff))
    assert 1 - keep.mean() == pytest.approx(similarity / 2, abs=2 / side**2)


@pytest.mark.parametrize("similarity", [0.0, -0.3, -1.0])
def test_image_without_similarity_is_not_masked(similarity: float) -> None:
    """A keep ratio of 1 and above would index past the last pixel."""
    assert relevance_mask(make_relevance_map(similarity)).mean() > 1 - 1e-4


@pytest.mark.parametrize("value", [0.0, 0.1, 3.0, -2.0])
def test_constant_map_masks_nothing(value: float) -> None:
    """The official code divides 0 by 0 there, and only by accident masks nothing: nan is not below anything."""
    relevance = RelevanceMap(np.full((6, 6), value, dtype=np.float32), similarity=0.9, input_size=96)
    assert relevance_mask(relevance).all()
    assert keep_relevant(random_image(), relevance) == random_image()


def test_scale_of_the_relevance_does_not_matter() -> None:
    relevance = make_relevance_map()
    np.testing.assert_array_equal(
        relevance_mask(relevance), relevance_mask(replace(relevance, grid=relevance.grid * 128 - 8))
    )


@pytest.mark.parametrize("size", [(200, 50), (31, 77), (112, 112), (1, 1)])
def test_mask_has_the_geometry_of_the_image(size: tuple[int, int]) -> None:
    """The size stays. Kept pixels keep their values, others are black."""
    before, relevance = (
        random_image(size=size),
        make_relevance_map(similarity=1.0, side=113),
    )  # odd: no pixel falls between two
    after = keep_relevant(before, relevance)
    assert after.visible.size == size
    assert after.visible.mode == "RGB"
    old, new = np.asarray(before.visible), np.asarray(after.visible)
    shown = new.any(axis=-1)
    np.testing.assert_array_equal(new[shown], old[shown])
    rows = (np.arange(size[1]) + 0.5) * relevance.input_size // size[1]
    columns = (np.arange(size[0]) + 0.5) * relevance.input_size // size[0]
    np.testing.assert_array_equal(shown, relevance_mask(relevance)[np.ix_(rows.astype(int), columns.astype(int))])


def test_input_image_is_not_changed() -> None:
    before = random_image()
    pixels = before.visible.tobytes()
    assert keep_relevant(before, make_relevance_map(similarity=1.0)) != before
    assert before.visible.tobytes() == pixels


def test_masked_image_shares_its_pixels() -> None:
    """Waiting requests hold the image, and many of them may share one."""
    before, relevance = random_image(size=(400, 300)), make_relevance_map(similarity=1.0)
    after = keep_relevant(before, relevance)
    assert after.source is before.visible
    assert after.mask is not None
    assert after.mask.size == (relevance.input_size, relevance.input_size)
    assert len({before.key, after.key, keep_relevant(before, make_relevance_map(similarity=0.9)).key}) == 3


def test_edit_of_a_masked_image_keeps_the_mask() -> None:
    masked = keep_relevant(random_image(size=(40, 30)), make_relevance_map(similarity=1.0))
    part = crop(masked, Box(10, 5, 30, 25))
    np.testing.assert_array_equal(np.asarray(part.visible), np.asarray(masked.visible)[5:25, 10:30])


def test_edit_keeps_the_noise() -> None:
    noisy = ImageInput(Image.new("RGB", (8, 8), "red")).with_noise(Noise(500, 1))
    assert keep_relevant(noisy, make_relevance_map()).noise == Noise(500, 1)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (50, 1), (101, 999), (2_000, 1_100)])
@pytest.mark.parametrize("mask_size", [(1, 1), (7, 5), (113, 24), (384, 384)])
def test_masking_in_strips_equals_masking_at_once(size: tuple[int, int], mask_size: tuple[int, int]) -> None:
    image = random_image(size=size)
    mask = Image.fromarray(np.random.default_rng(0).random(mask_size[::-1]) < 0.5)
    shown = mask.resize(size, Image.Resampling.NEAREST)
    expected = Image.composite(image.source, Image.new("RGB", size), shown)
    assert replace(image, mask=mask).visible.tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (50, 1), (101, 99), (1_024, 1_024)])
@pytest.mark.parametrize("shift", [Shift(0.03, 0.03), Shift(-0.03, -0.03), Shift(0.5, -0.25), Shift(0.0, 0.0)])
def test_shift_moves_the_pixels(size: tuple[int, int], shift: Shift) -> None:
    image = random_image(size=size)
    pixels = np.asarray(image.source)
    right, down = round(shift.right * size[0]), round(shift.down * size[1])
    expected = np.full_like(pixels, SHIFT_COLOR)
    kept = [slice(max(0, -by), length - max(0, by)) for by, length in ((down, size[1]), (right, size[0]))]
    filled = [slice(max(0, by), length - max(0, -by)) for by, length in ((down, size[1]), (right, size[0]))]
    expected[filled[0], filled[1]] = pixels[kept[0], kept[1]]
    shifted = image.with_shift(shift)
    np.testing.assert_array_equal(np.asarray(shifted.visible), expected)
    assert shifted.source is image.source
    assert shifted.visible is shifted.visible, "an image processor finds its result by the object"
    assert len({image.key, shifted.key, image.with_shift(Shift(0.1, 0.1)).key}) == 3
    assert shifted.key == ImageInput(image.source, shift=shift).key


@pytest.mark.parametrize("size", [(2_000, 1_000), (4_990, 4_990), (20_000, 60), (1, 2_000_000)])
def test_a_shifted_copy_has_at_most_a_megapixel(size: tuple[int, int]) -> None:
    shifted = ImageInput(Image.new("RGB", size, "red")).with_shift(Shift(0.03, 0.03))
    width, height = shifted.visible.size
    assert width * height <= 2**20
    assert shifted.size == (width, height)
    assert Box.from_image(shifted) == Box(0, 0, width, height)
    assert shifted.visible.getpixel((width - 1, height - 1)) == (255, 0, 0)


def test_users_of_a_shift_share_the_copy_while_one_uses_it() -> None:
    image = random_image(size=(40, 30))
    first = image.with_shift(Shift(0.1, 0.1))
    assert image.with_shift(Shift(0.1, 0.1)) is first
    reference = weakref.ref(first)
    del first
    gc.collect()
    assert reference() is None


def test_key_of_a_shifted_copy_reads_no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    image = random_image(size=(40, 30))
    assert image.key
    monkeypatch.setattr(Image.Image, "tobytes", lambda _: pytest.fail("reads the pixels"))
    assert image.with_shift(Shift(0.1, 0.1)).key != image.key


def test_mask_and_frame_are_applied_after_the_shift() -> None:
    image = random_image(size=(40, 30))
    shifted = image.with_shift(Shift(0.25, 0.0))
    mask = Image.new("1", (40, 30), 0)
    mask.paste(1, (0, 0, 20, 30))
    masked = np.asarray(replace(shifted, mask=mask).visible)
    np.testing.assert_array_equal(masked[:, 10:20], np.asarray(image.source)[:, :10])
    assert not masked[:, 20:].any()
    before = shifted.visible.tobytes()
    framed = draw_frame(shifted, Box(0, 0, 40, 30), "red")
    assert framed.visible.getpixel((0, 0)) == (255, 0, 0)
    assert shifted.visible.tobytes() == before, "the kept copy is not drawn on"
    assert crop(shifted, Box(0, 0, 20, 20)).shift is None


def test_frame_is_drawn_when_the_image_is_used() -> None:
    image, box = random_image(size=(300, 200)), Box(10, 20, 200, 150)
    framed = draw_frame(image, box, "red")
    expected = image.source.copy()
    ImageDraw.Draw(expected).rectangle((10, 20, 199, 149), outline="red", width=2)
    assert framed.source is image.source
    assert framed.visible.tobytes() == expected.tobytes()
    assert framed != image
    assert framed != draw_frame(image, box, "blue")
    twice = draw_frame(framed, Box(0, 0, 5, 5), "blue").visible
    assert (twice.getpixel((0, 0)), twice.getpixel((10, 20))) == ((0, 0, 255), (255, 0, 0))


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [
        ((30, 20), 64, 64),
        ((30, 80), 64, 80),
        ((2_048, 82), 8_192, 2_048),
        ((2_400, 2_500), 336, 2_449),
        ((2_500, 2_500), 336, 2_500),
    ],
)
def test_padded_image_has_a_bound(size: tuple[int, int], side: int, expected: int) -> None:
    assert pad_to_square(random_image(size=size), side).visible.size == (expected, expected)


@pytest.mark.parametrize(
    ("step", "alpha", "signal", "noise"),
    [
        (0, 0.999978, 0.99999, 0.00473),
        (100, 0.996589, 0.99829, 0.05841),
        (200, 0.987795, 0.99388, 0.11048),
        (300, 0.962329, 0.98098, 0.19409),
        (500, 0.744799, 0.86302, 0.50517),
        (700, 0.351266, 0.59268, 0.80544),
        (900, 0.133143, 0.36489, 0.93105),
        (999, 0.081249, 0.28504, 0.95851),
    ],
)
def test_diffusion_equals_the_published_schedule(step: int, alpha: float, signal: float, noise: float) -> None:
    assert alpha_schedule()[step].item() == pytest.approx(alpha, abs=6e-7)
    pixels = torch.full((200, 200), 3.0)
    after = diffuse(pixels, step, torch.Generator().manual_seed(0))
    assert after.mean().item() == pytest.approx(3 * signal, abs=0.02)
    assert after.std().item() == pytest.approx(noise, rel=0.02)


def test_schedule_has_1000_steps() -> None:
    assert alpha_schedule().shape == (1000,)
    assert (alpha_schedule().diff() < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_noise_follows_from_its_seed(dtype: torch.dtype) -> None:
    pixels = torch.randn(3, 8, 8).to(dtype)
    before = pixels.clone()
    one, again, other = (add_noise(pixels, Noise(500, seed)) for seed in (4, 4, 5))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.dtype == dtype
    assert torch.equal(pixels, before)


def test_noise_does_not_use_the_global_generator() -> None:
    """Otherwise a request with noise would change the samples of others."""
    state = torch.get_rng_state()
    add_noise(torch.zeros(3, 4, 4), Noise(999, 1))
    assert torch.equal(torch.get_rng_state(), state)
