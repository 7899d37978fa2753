"""Transformations of `ritual`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import convolve

from decoding.requests import GenerateRequest, ImageInput, Prompt
from decoding.strategies.ritual import RITUAL, TRANSFORMATIONS, choose_crop_size, shift_hue
from tests.decoding.fakes import make_request, random_image

IMAGE = random_image(size=(40, 28)).visible


def transform(name: str, image: Image.Image = IMAGE, seed: int = 0) -> NDArray[np.uint8]:
    return np.asarray(TRANSFORMATIONS[name](image, Random(seed)))


def get_branch(request: GenerateRequest, **parameters: Any) -> Prompt:
    return RITUAL(**parameters).prepare(request).branches["transformed"]


def test_flips_exchange_the_sides() -> None:
    pixels = np.asarray(IMAGE)
    assert (transform("horizontal_flip") == pixels[:, ::-1]).all()
    assert (transform("vertical_flip") == pixels[::-1]).all()


def test_rotation_keeps_size_and_blackens_corners() -> None:
    white = Image.new("RGB", (41, 41), "white")
    shares = []
    for seed in range(20):
        rotated = transform("rotate", white, seed)
        assert rotated.shape == (41, 41, 3)
        assert set(np.unique(rotated)) <= {0, 255}  # the nearest pixel, not a mean
        assert rotated[20, 20].tolist() == [255] * 3
        shares.append((rotated == 0).mean())
    assert 0.05 < np.mean(shares) < 0.2


def test_hue_goes_around_its_circle() -> None:
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    assert np.allclose(np.asarray(shift_hue(red, 1 / 3))[0, 0], (0, 255, 0), atol=8)
    assert np.allclose(np.asarray(shift_hue(red, -1 / 3))[0, 0], (0, 0, 255), atol=8)
    assert (np.asarray(shift_hue(red, 0.0)) == np.asarray(red)).all()


def test_color_jitter_keeps_shape_and_varies() -> None:
    jittered = [transform("color_jitter", seed=seed) for seed in range(6)]
    assert {each.shape for each in jittered} == {(28, 40, 3)}
    assert len({each.tobytes() for each in jittered}) == 6


def test_blur_equals_a_convolution() -> None:
    point = np.zeros((41, 41, 3), dtype=np.uint8)
    point[18:23, 18:23] = 255
    sigma = Random(3).uniform(1.5, 2.0)
    line = np.exp(-(np.arange(-6, 7) ** 2) / (2 * sigma**2))
    kernel = np.outer(line, line) / line.sum() ** 2
    expected = convolve(point[..., 0].astype(float), kernel, mode="same")
    assert np.abs(transform("gaussian_blur", Image.fromarray(point), 3)[..., 0] - expected).max() <= 1
    grey = Image.new("RGB", (20, 9), (120, 7, 250))
    assert (transform("gaussian_blur", grey) == np.asarray(grey)).all()


@pytest.mark.parametrize("size", [(640, 480), (1, 1), (2, 900), (900, 2), (37, 41)])
def test_crops_fit_the_image(size: tuple[int, int]) -> None:
    for seed in range(200):
        width, height = choose_crop_size(size, Random(seed))
        assert 0 < width <= size[0]
        assert 0 < height <= size[1]
    if min(size) > 30:
        assert 0.08 - 0.02 < width * height / (size[0] * size[1]) <= 1
    assert transform("crop", Image.new("RGB", size)).shape == (336, 336, 3)


def test_crop_shows_a_part_of_the_image() -> None:
    """Left to right the brightness grows, so that the ends of the crop have its place."""
    ramp = np.repeat(np.linspace(0, 255, 300)[None, :, None], 200, axis=0).repeat(3, axis=2).astype(np.uint8)
    widths = [np.ptp(transform("crop", Image.fromarray(ramp), seed)[0, :, 0].astype(int)) / 255 for seed in range(40)]
    assert min(widths) < 0.5 < max(widths) <= 1


def test_all_six_transformations_are_drawn() -> None:
    questions = [make_request(f"Is there a cat {number}?") for number in range(300)]
    image = questions[0].prompt.images[0]
    (named,) = {image.key}
    found: Counter[str] = Counter()
    own = {
        name: {get_branch(each, transformation=name).images[0].key for each in questions[:1]}
        for name in ("horizontal_flip", "vertical_flip")
    }
    for request in questions:
        key = get_branch(request).images[0].key
        assert key != named
        found[next((name for name, keys in own.items() if key in keys), "other")] += 1
    assert 25 < found["horizontal_flip"] < 80
    assert 25 < found["vertical_flip"] < 80


def test_draw_depends_on_seeds_image_and_question() -> None:
    request = make_request("Is there a cat?")
    first = get_branch(request, transformation="color_jitter")
    assert get_branch(request, transformation="color_jitter") == first
    seeded = request.replace(sampling=replace(request.sampling, seed=5))
    others = [
        get_branch(request, transformation="color_jitter", seed=1),
        get_branch(seeded, transformation="color_jitter"),
        get_branch(make_request("Is there a dog?"), transformation="color_jitter"),
    ]
    assert len({prompt.images[0].key for prompt in (first, *others)}) == 4
    assert get_branch(seeded, transformation="color_jitter") == get_branch(
        request, transformation="color_jitter", seed=5
    )


def test_each_image_is_transformed() -> None:
    images = random_image(seed=1), random_image(seed=2)
    request = GenerateRequest(Prompt.from_text("Which is larger?", *images))
    transformed = get_branch(request, transformation="vertical_flip")
    assert [
        (np.asarray(each.visible)[::-1] == np.asarray(image.visible)).all()
        for each, image in zip(transformed.images, images, strict=True)
    ] == [True, True]
    assert transformed.without_images() == request.prompt.without_images()


def test_large_image_is_scaled_down_first() -> None:
    large = ImageInput(Image.new("RGB", (3000, 1000)))
    request = GenerateRequest(Prompt.from_text("?", large))
    (image,) = get_branch(request, transformation="vertical_flip").images
    assert image.size[0] * image.size[1] <= 1 << 20
    assert image.size[0] / image.size[1] == pytest.approx(3, abs=0.01)
    assert RITUAL().count_image_copies() == 1
