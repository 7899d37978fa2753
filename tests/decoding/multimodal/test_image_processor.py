"""Image processing that copies less, compared with that of transformers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from decoding.multimodal.image_processor import process_in_strips

PROCESSORS = [
    (CLIPImageProcessorPil, {"size": {"height": 112, "width": 112}, "do_center_crop": False}),
    (CLIPImageProcessorPil, {"size": {"shortest_edge": 336}, "crop_size": {"height": 336, "width": 336}}),
    (Qwen2VLImageProcessorPil, {"size": {"shortest_edge": 3_136, "longest_edge": 200_000}}),
]


@pytest.mark.parametrize(("processor_class", "options"), PROCESSORS)
@pytest.mark.parametrize("size", [(300, 200), (2_001, 1_003), (1_000, 2_100)])
def test_pixels_are_equal(processor_class: Any, options: dict[str, Any], size: tuple[int, int]) -> None:
    images = [Image.merge("RGB", [Image.effect_noise(size, sigma) for sigma in (30, 60, 90)])] * 2
    plain, lean = processor_class(**options), processor_class(**options)
    process_in_strips(lean)
    expected, actual = (one(images, return_tensors="pt")["pixel_values"] for one in (plain, lean))
    assert torch.equal(actual, expected)


def test_largest_image_takes_less_than_150_megabytes() -> None:
    processor = CLIPImageProcessorPil(size={"height": 112, "width": 112}, do_center_crop=False)
    process_in_strips(processor)
    image = Image.new("RGB", (5_000, 5_000), "red")
    Path("/proc/self/clear_refs").write_text("5")
    before = read_megabytes("VmRSS")
    processor([image], return_tensors="pt")
    assert read_megabytes("VmHWM") - before < 150


def read_megabytes(field: str) -> int:
    return int(re.findall(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[0]) // 1_000
