"""The memory for decoded images: requests wait for it, and give it back however they end."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass

import pytest
from PIL import Image
from pydantic import SecretStr

from decoding.errors import BadRequest
from server.media import images
from server.media.image_memory import ImageLease, ImageMemory
from server.media.images import ImageLoader
from server.service import create_image_loader
from server.settings import Settings
from tests.server.conftest import StartServer, data_url, image_messages

LARGE = data_url(Image.new("RGB", (500, 500), "red"))  # 1 MB decoded, and 2.5 MB while it is decoded


@dataclass(frozen=True)
class Source:
    url: str
    param: str = "url"


async def test_request_waits_until_its_images_fit() -> None:
    loader = ImageLoader(memory_bytes=2_500_000)
    first, second, third = (loader.memory.lease(None) for _ in range(3))
    await loader.load([Source(LARGE), Source(LARGE)], first)
    assert first.bytes == 2_000_000
    waiting = asyncio.create_task(loader.load([Source(LARGE)], second))
    cancelled = asyncio.create_task(loader.load([Source(LARGE)], third))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    cancelled.cancel()
    first.release()
    (image,) = await waiting
    assert image.source.size == (500, 500)
    second.release()
    await asyncio.gather(cancelled, return_exceptions=True)
    assert loader.memory.lease(None).fits(2_500_000)


async def test_views_count_with_the_images() -> None:
    loader = ImageLoader(memory_bytes=50_000_000)
    with loader.memory.lease(None) as lease:
        await loader.load([Source(LARGE)], lease, num_copies=2)
        assert lease.bytes == 3_000_000
    huge = Source(data_url(Image.new("RGB", (2_000, 2_000), "red")))
    with loader.memory.lease(None) as lease:
        await loader.load([huge], lease, num_copies=2)
        assert lease.bytes == 16_000_000 + 2 * 4 * 2**20


@pytest.mark.parametrize(("decoding", "copies"), [({}, 0), ({"check": True}, 2), ({"check": {"views": 2}}, 1)])
async def test_the_copies_for_a_check_are_reserved(
    start_server: StartServer, monkeypatch: pytest.MonkeyPatch, decoding: dict[str, object], copies: int
) -> None:
    server = await start_server()
    reserved: list[int] = []
    reserve = ImageLease.reserve

    async def record(lease: ImageLease, size: int) -> None:
        reserved.append(size)
        await reserve(lease, size)

    monkeypatch.setattr(ImageLease, "reserve", record)
    response = await server.chat(messages=image_messages(LARGE), decoding=decoding)
    assert response.status_code == 200
    decoded, processed = reserved
    assert decoded == (1 + copies) * 1_000_000
    assert (
        processed == (2 + copies if copies else 1) * 3_000_000
    )  # rows of the answer and of a question, and the copies


async def test_refused_image_gives_its_memory_back() -> None:
    loader = ImageLoader(memory_bytes=4_000_000)
    with pytest.raises(BadRequest), loader.memory.lease(None) as lease:
        await loader.load([Source(LARGE[: len(LARGE) // 8 * 4])], lease)
    assert loader.memory.lease(None).fits(4_000_000)


async def test_request_that_needs_more_than_there_is_runs_alone() -> None:
    loader = ImageLoader(memory_bytes=1_000_000)
    with loader.memory.lease(None) as lease:
        assert len(await loader.load([Source(LARGE)] * 3, lease)) == 3
        assert not loader.memory.lease(None).fits(1)


async def test_request_without_images_does_not_wait() -> None:
    loader = ImageLoader(memory_bytes=100)
    holder, waiting = loader.memory.lease(None), loader.memory.lease(None)
    await holder.reserve(100)
    task = asyncio.create_task(waiting.reserve(100))
    await asyncio.sleep(0)
    with loader.memory.lease(None) as lease:
        async with asyncio.timeout(5):
            assert await loader.load([], lease) == []
    task.cancel()


async def test_keys_take_turns() -> None:
    memory = ImageMemory(10)
    busy, order = memory.lease("a"), list[str]()
    await busy.reserve(10)

    async def reserve(owner: str) -> None:
        with memory.lease(owner) as lease:
            await lease.reserve(6)
            order.append(owner)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(reserve(owner)) for owner in ("a", "a", "b")]
    await asyncio.sleep(0)
    busy.shrink(4)
    await asyncio.sleep(0)
    busy.release()
    await asyncio.gather(*tasks)
    assert order[0] == "b"


async def test_every_route_hands_the_memory_back(start_server: StartServer) -> None:
    server = await start_server(image_memory_mb=1)
    memory = server.app.state.service.image_loader.memory
    for body in ({}, {"stream": True}, {"max_tokens": 10**6, "decoding": {"strategy": "no-such"}}):
        await server.chat(messages=image_messages(LARGE), **body)
        assert memory.lease(None).fits(1_000_000)
    await server.http.post("/tokenize", json={"model": "tiny", "messages": image_messages(LARGE)})
    assert memory.lease(None).fits(1_000_000)


async def test_key_holds_no_more_than_its_share() -> None:
    loader = ImageLoader(memory_bytes=8_000_000, max_owner_bytes=4_000_000)
    leases = [loader.memory.lease("a") for _ in range(5)]
    may_release = asyncio.Event()

    async def load(lease: ImageLease) -> None:
        with lease:
            await loader.load([Source(LARGE)], lease)
            await may_release.wait()

    tasks = [asyncio.create_task(load(lease)) for lease in leases]
    await asyncio.sleep(0.3)
    assert sum(lease.bytes for lease in leases) <= 4_000_000
    with loader.memory.lease("b") as other:
        await asyncio.wait_for(loader.load([Source(LARGE), Source(LARGE)], other), 10)
    may_release.set()
    await asyncio.wait_for(asyncio.gather(*tasks), 10)


async def test_large_image_of_one_key_does_not_wait_for_images_of_another() -> None:
    """An image takes twice as much again while it is decoded. That memory is free again after the decoder."""
    loader = ImageLoader(memory_bytes=256_000_000, max_owner_bytes=128_000_000)
    large, small = data_url(Image.new("L", (5000, 5000))), data_url(Image.new("RGB", (8, 8)))
    with loader.memory.lease("a") as first, loader.memory.lease("b") as second, loader.memory.lease("b") as third:
        await loader.load([Source(LARGE)], second, "b")
        await asyncio.wait_for(loader.load([Source(large)], first, "a"), 30)
        assert first.bytes == 100_000_000
        await asyncio.wait_for(loader.load([Source(small)], third, "b"), 30)
    assert loader.memory.lease("a").fits(128_000_000)


async def test_images_are_decoded_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    running, most = 0, 0

    def decode(*_: object) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.05)
        running -= 1

    monkeypatch.setattr(images, "MAX_DECODING_BYTES", 4_000_000)  # an image takes 1.5 MB beside its pixels
    monkeypatch.setattr(images, "decode_cached", decode)
    loader = ImageLoader()
    leases = [loader.memory.lease(None) for _ in range(6)]
    await asyncio.gather(*(loader.load([Source(LARGE)], lease) for lease in leases))
    assert most == 2


async def test_memory_of_a_cancelled_request_is_held_until_its_decoder_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    began, may_end = threading.Event(), threading.Event()

    def decode(*_: object) -> None:
        began.set()
        may_end.wait(10)

    monkeypatch.setattr(images, "decode_cached", decode)
    loader = ImageLoader(memory_bytes=4_000_000)

    async def load() -> None:
        with loader.memory.lease(None) as lease:
            await loader.load([Source(LARGE)], lease)

    task = asyncio.create_task(load())
    await asyncio.to_thread(began.wait, 10)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0.01)
    assert not task.done()
    assert not loader.memory.lease(None).fits(4_000_000)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loader.memory.lease(None).fits(4_000_000)


async def test_service_gives_each_of_two_keys_its_share() -> None:
    for keys, share_caches, share in (
        ("a,b", False, 4_000_000),
        ("a", False, 8_000_000),
        ("a,b", True, 8_000_000),
    ):
        settings = Settings(api_keys=SecretStr(keys), image_memory_mb=8, key_share=0.5, share_caches=share_caches)
        memory = create_image_loader(settings).memory
        await memory.lease("a").reserve(1)
        assert memory.lease("a").fits(share - 1)
        assert not memory.lease("a").fits(share)
