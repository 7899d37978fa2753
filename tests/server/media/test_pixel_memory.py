"""The memory for images as the model reads them: each row counts, and every request hands its part back."""

import asyncio

import pytest
from PIL import Image

from decoding.errors import EngineFailed
from server.service import create_pixel_memory
from server.settings import Settings
from tests.server.conftest import StartServer, data_url, image_messages
from tests.server.fakes import FakeEngine

MESSAGES = image_messages(data_url(Image.new("RGB", (200, 200))))  # 0.48 MB for each row of the fake engine


async def test_requests_wait_for_the_memory_of_their_rows(start_server: StartServer) -> None:
    """One choice takes 0.48 MB of 1 MB, and a choice of three runs while no other request holds any."""
    server = await start_server(FakeEngine(words=["word "] * 20, pause=0.005), pixel_memory_mb=1)
    for choices, most_at_once in ((1, 2), (2, 2), (3, 3)):
        server.engine.most_running = 0
        answers = await asyncio.gather(*(server.chat(messages=MESSAGES, n=choices) for _ in range(3)))
        assert [answer.status_code for answer in answers] == [200] * 3
        assert server.engine.most_running == most_at_once


@pytest.mark.parametrize("body", [{}, {"stream": True}, {"decoding": {"check": True}}])
@pytest.mark.parametrize("failure", [None, EngineFailed("out of memory")])
async def test_requests_hand_the_memory_back(
    start_server: StartServer, body: dict[str, object], failure: EngineFailed | None
) -> None:
    server = await start_server(FakeEngine(failure=failure, fails_after=2), pixel_memory_mb=1)
    await server.chat(messages=MESSAGES, **body)
    assert server.app.state.service.pixel_memory.lease(None).fits(1_000_000)


async def test_a_client_that_disconnects_while_it_waits_hands_the_memory_back(start_server: StartServer) -> None:
    server = await start_server(pixel_memory_mb=1)
    memory = server.app.state.service.pixel_memory
    with memory.lease("another") as lease:
        await lease.reserve(1_000_000)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.chat(messages=MESSAGES), 0.5)
        assert not server.engine.requests
    assert memory.lease(None).fits(1_000_000)


async def test_requests_without_images_do_not_wait(start_server: StartServer) -> None:
    server = await start_server(pixel_memory_mb=1)
    with server.app.state.service.pixel_memory.lease("another") as lease:
        await lease.reserve(1_000_000)
        assert (await asyncio.wait_for(server.chat(), 10)).status_code == 200


async def test_keys_have_shares() -> None:
    memory = create_pixel_memory(Settings(api_keys="one,two", pixel_memory_mb=8, key_share=0.5))  # type: ignore[arg-type]
    with memory.lease("one") as first, memory.lease("two") as second:
        await first.reserve(3_000_000)
        assert not memory.lease("one").fits(2_000_000)
        assert second.fits(4_000_000)
