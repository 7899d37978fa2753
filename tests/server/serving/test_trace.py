"""decoding.trace: the tokens that the strategy changed, and the images of its branches."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image, ImageStat
from structlog.typing import EventDict

from decoding.requests import GenerateRequest, ImageInput, Noise, Prompt, RelevanceMap
from server.serving.trace_images import MAX_TRACE_SIDE, render_trace_images
from tests.server.conftest import FakeServer, image_messages


def pixels(view: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(view.removeprefix("data:image/png;base64,"))))


def test_trace_has_edited_images_only() -> None:
    image, edited = ImageInput(Image.new("RGB", (1024, 512), "red")), ImageInput(Image.new("RGB", (1024, 512), "blue"))
    prompt = Prompt.from_text("What?", image)
    branches = {
        "a/edited": Prompt.from_text("What?", edited),
        "a/text": Prompt.from_text("Why?", image),
        "a/noise": Prompt.from_text("What?", image.with_noise(Noise(500, 0))),
        "a/none": prompt.without_images(),
    }
    shown = render_trace_images(GenerateRequest(prompt, branches=branches), [image], {})
    assert list(shown) == ["a/edited", "a/noise"]
    (view,) = map(pixels, shown["a/edited"])
    assert (view.size, view.getpixel((0, 0))) == ((MAX_TRACE_SIDE, MAX_TRACE_SIDE // 2), (0, 0, 255))


def test_trace_shows_noise_by_its_step() -> None:
    image = ImageInput(Image.new("RGB", (64, 64), "grey"))
    prompt = Prompt.from_text("What?", image)
    deviations: list[float] = []
    for step in (0, 300, 999):
        noisy = prompt.map_images(lambda each, step=step: each.with_noise(Noise(step, 3)))  # type: ignore[misc]
        (view,) = map(
            pixels,
            render_trace_images(GenerateRequest(prompt, branches={"vcd/noisy": noisy}), [image], {})["vcd/noisy"],
        )
        deviations.append(ImageStat.Stat(view).stddev[0])
    assert deviations[0] < 3 < deviations[1] < deviations[2]


def test_trace_shows_a_replaced_main_image_and_relevance() -> None:
    image, view = ImageInput(Image.new("RGB", (40, 20), "white")), ImageInput(Image.new("RGB", (8, 8), "blue"))
    grid = np.zeros((4, 4), np.float32)
    grid[:, 0] = 1
    maps = {("agla", image): RelevanceMap(grid, 0.5, 16)}
    shown = render_trace_images(GenerateRequest(Prompt.from_text("What?", view)), [image], maps)
    assert list(shown) == ["main", "agla/relevance map"]
    assert pixels(shown["main"][0]).getpixel((0, 0)) == (0, 0, 255)
    relevance = pixels(shown["agla/relevance map"][0])
    assert relevance.size == (40, 20)
    (red, _, blue), (dark, _, other) = relevance.getpixel((2, 10)), relevance.getpixel((38, 10))  # type: ignore[misc]
    assert red > blue + 60
    assert dark == other < 130


@pytest.mark.parametrize("trace", [True, False])
async def test_trace_fields_are_present_on_request_only(
    server: FakeServer, trace: bool, log_entries: list[EventDict]
) -> None:
    response = await server.chat(
        model="tiny:blind", messages=image_messages(), logprobs=True, decoding={"trace": trace}
    )
    body = response.json()
    assert ("pictures" in body["onlyseen"]) == trace
    assert all(("changed" in entry) == trace for entry in body["choices"][0]["logprobs"]["content"])
    assert ["pictures" in entry for entry in log_entries if entry["event"] == "receipt"] == [False]


async def test_trace_switches_logprobs_on(server: FakeServer) -> None:
    assert (await server.chat(decoding={"trace": True})).json()["choices"][0]["logprobs"]["content"]
    refused = (await server.chat(decoding={"trace": True}, logprobs=False)).json()["error"]
    assert (refused["param"], "trace" in refused["message"]) == ("logprobs", True)
