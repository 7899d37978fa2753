"""Results of an image processor that are kept as long as their images."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BatchFeature

from decoding.multimodal.image_processor_cache import ImageProcessorCache


class CountingProcessor:
    """Returns the red value of each image, and counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def process(self, images: Any, **options: Any) -> BatchFeature:
        self.calls += 1
        values = [float(image.getpixel((0, 0))[0]) for row in images for image in row]
        return BatchFeature({"pixel_values": torch.tensor([values]), "rows": [1]})


def new_image(red: int) -> Image.Image:
    return Image.new("RGB", (2, 2), (red, 0, 0))


def run(results: ImageProcessorCache, processor: CountingProcessor, images: Any, **options: Any) -> BatchFeature:
    return results.get_or_process(CountingProcessor.process, processor, images, **options)  # type: ignore[no-any-return]


def test_the_same_images_are_processed_once() -> None:
    results, processor = ImageProcessorCache(), CountingProcessor()
    image, other = new_image(1), new_image(2)
    first = run(results, processor, [[image, other]], return_tensors="pt")
    first.pop("rows")  # as processors of some families do
    second = run(results, processor, [[image, other]], return_tensors="pt")
    assert processor.calls == 1
    assert second["rows"] == [1]
    assert second["pixel_values"].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("options", [{}, {"size": 3}])
def test_other_images_nesting_or_options_are_another_result(options: dict[str, int]) -> None:
    results, processor = ImageProcessorCache(), CountingProcessor()
    image, other = new_image(1), new_image(1)
    run(results, processor, [[image], [other]])
    run(results, processor, [[other], [image]], **options)
    run(results, processor, [[image, other]], **options)
    assert processor.calls == 3


def test_a_result_is_dropped_with_its_image() -> None:
    results, processor = ImageProcessorCache(), CountingProcessor()
    image = new_image(1)
    run(results, processor, [[image]])
    assert len(results) == 1
    del image
    gc.collect()
    assert len(results) == 0


def test_results_take_bounded_memory() -> None:
    results, processor = ImageProcessorCache(max_bytes=12), CountingProcessor()
    images = [new_image(red) for red in range(5)]
    for image in images:
        run(results, processor, [[image]])
    assert len(results) == 3
    run(results, processor, [images])  # 20 bytes
    assert len(results) == 3
    run(results, processor, [[images[-1]]])
    assert processor.calls == 6
