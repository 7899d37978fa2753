"""decoding.trace: which tokens the strategy changed, and what its branches saw."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image
from structlog.typing import EventDict

from decoding.ask import Ask, Noise, Picture, Prompt
from server.views import LONGEST_SIDE, views
from tests.server.conftest import Served, seeing


def pixels(view: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(view.removeprefix("data:image/png;base64,"))))


def test_only_edited_pictures_are_shown() -> None:
    seen, cut = Picture(Image.new("RGB", (1024, 512), "red")), Picture(Image.new("RGB", (1024, 512), "blue"))
    prompt = Prompt.of("What?", seen)
    branches = {
        "a/edited": Prompt.of("What?", cut),
        "a/text": Prompt.of("Why?", seen),
        "a/noise": Prompt.of("What?", seen.noised(Noise(500, 0))),
        "a/none": prompt.without_pictures(),
    }
    shown = views(Ask(prompt, branches=branches))
    assert list(shown) == ["a/edited"]
    (view,) = map(pixels, shown["a/edited"])
    assert (view.size, view.getpixel((0, 0))) == ((LONGEST_SIDE, LONGEST_SIDE // 2), (0, 0, 255))


@pytest.mark.parametrize("wanted", [True, False])
async def test_it_is_told_where_it_was_asked_for(served: Served, wanted: bool, logged: list[EventDict]) -> None:
    response = await served.chat(model="tiny:blind", messages=seeing(), logprobs=True, decoding={"trace": wanted})
    told = response.json()
    assert ("pictures" in told["onlyseen"]) == wanted
    assert all(("changed" in entry) == wanted for entry in told["choices"][0]["logprobs"]["content"])
    assert ["pictures" in entry for entry in logged if entry["event"] == "receipt"] == [False]


async def test_it_switches_logprobs_on(served: Served) -> None:
    assert (await served.chat(decoding={"trace": True})).json()["choices"][0]["logprobs"]["content"]
    refused = (await served.chat(decoding={"trace": True}, logprobs=False)).json()["error"]
    assert (refused["param"], "trace" in refused["message"]) == ("logprobs", True)
