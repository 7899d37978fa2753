"""decoding.trace: the tokens that the strategy changed, and the images of its branches."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image
from structlog.typing import EventDict

from decoding.requests import GenerateRequest, ImageInput, Noise, Prompt
from server.serving.generation import MAX_TRACE_SIDE, render_trace_images
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
    shown = render_trace_images(GenerateRequest(prompt, branches=branches))
    assert list(shown) == ["a/edited"]
    (view,) = map(pixels, shown["a/edited"])
    assert (view.size, view.getpixel((0, 0))) == ((MAX_TRACE_SIDE, MAX_TRACE_SIDE // 2), (0, 0, 255))


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
