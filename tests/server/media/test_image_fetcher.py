"""Fetching images: only allowed hosts, only checked addresses, within bounds. The test site records its requests."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from decoding.errors import BadRequest
from server.media import image_fetcher
from server.media.host_allowlist import AddressRefused, HostAllowlist
from server.media.image_fetcher import ImageFetcher
from server.media.image_ref import ImageRef
from server.media.images import ImageLoader
from tests.server.conftest import StartServer, data_url, image_messages

pytestmark = pytest.mark.flaky(reruns=2)  # refusals have a limit in time, and the machine may be busy

PNG = base64.b64decode(data_url().partition(",")[2])
LOOPBACK, PUBLIC = "127.0.0.1", "93.184.216.34"


class Site:
    """A web server whose answer depends on the path. It records the head of every request."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self.was_hit = asyncio.Event()
        self.port = 0
        self.redirect_to = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.hits.append(request)
        self.was_hit.set()
        head = "HTTP/1.1 200 OK\r\nconnection: close\r\n"
        match request.split()[1]:
            case "/a.png?x=1":
                writer.write(f"{head}content-length: {len(PNG)}\r\n\r\n".encode() + PNG)
            case "/moved":
                writer.write(
                    f"HTTP/1.1 302 Found\r\nlocation: {self.redirect_to}\r\ncontent-length: 0\r\n\r\n".encode()
                )
            case "/html":
                writer.write(f"{head}\r\n<html>".encode())
            case "/zipped":
                writer.write(f"{head}content-encoding: gzip\r\n\r\n".encode() + PNG)
            case "/endless":
                writer.write(f"{head}\r\n".encode())
                for _ in range(400):
                    writer.write(b"\0" * 65_536)
                    await writer.drain()
            case "/slow":
                writer.write(f"{head}content-length: 99\r\n\r\n".encode())
                await asyncio.sleep(2)
            case "/tiny-chunks":
                writer.write(f"{head}transfer-encoding: chunked\r\n\r\n".encode() + b"1\r\na\r\n" * 200_000)
            case "/informational":
                writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 40_000)
            case "/nonsense":
                writer.write(b"\0\1\2\r\n\r\n")
            case _:
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()

    connections: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(site.answer(reader, writer))
        connections.add(connection)
        await asyncio.wait([connection])
        writer.close()

    server = await asyncio.start_server(answer, LOOPBACK, 0)
    site.port = server.sockets[0].getsockname()[1]
    yield site
    server.close()
    for connection in connections:
        connection.cancel()
    await asyncio.gather(*connections, return_exceptions=True)
    await asyncio.sleep(0.01)


def make_resolver(*answers: Sequence[str]) -> image_fetcher.Resolver:
    """Make a resolver that returns the next answer at each call."""
    remaining = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return remaining.pop(0)

    return resolve


async def assert_refused(fetcher: ImageFetcher, url: str) -> None:
    start = time.perf_counter()
    with pytest.raises(BadRequest) as error:
        await fetcher.fetch(url, "url")
    assert (error.value.code, error.value.param) == ("invalid_image_url", "url")
    assert error.value.message == image_fetcher.FETCH_FAILED
    assert time.perf_counter() - start < 2


async def test_allowed_address_is_fetched(site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    assert await ImageFetcher(HostAllowlist([host])).fetch(f"http://{host}/a.png?x=1#f", "url") == PNG
    assert f"\r\nHost: {host}\r\n" in site.hits[0]


async def test_host_header_keeps_the_name(site: Site) -> None:
    allowed = HostAllowlist([f"images.test:{site.port}", f"{LOOPBACK}:{site.port}"])
    fetcher = ImageFetcher(allowed, make_resolver([LOOPBACK]))
    assert await fetcher.fetch(f"http://images.test:{site.port}/a.png?x=1", "url") == PNG
    assert f"\r\nHost: images.test:{site.port}\r\n" in site.hits[0]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.1:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f000001:{port}/",
        "http://0.0.0.0:{port}/",
        "http://127.0.0.1/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://169.254.169.254/",
        "http://10.0.0.1/",
        "http://user:secret@localhost:{port}/",
        "http://localhost:{port}\\@images.test/",
        "http://local\thost:{port}/",
        "http://localhost:{port}/\r\nX: y",
        "http://localhost%2f:{port}/",
        "http://other.test:{port}/",
        "https://",
        "http://[",
        "http://localhost:99999/",
    ],
)
async def test_unlisted_url_is_never_requested(site: Site, url: str) -> None:
    fetcher = ImageFetcher(HostAllowlist([f"localhost:{site.port}", f"images.test:{site.port}"]), make_resolver())
    await assert_refused(fetcher, url.format(port=site.port))
    assert not site.hits


@pytest.mark.parametrize("addresses", [[LOOPBACK], [PUBLIC, LOOPBACK], ["::ffff:127.0.0.1"], ["169.254.169.254"], []])
async def test_name_with_a_private_address_is_refused(site: Site, addresses: list[str]) -> None:
    fetcher = ImageFetcher(HostAllowlist([f"images.test:{site.port}"]), make_resolver(addresses))
    await assert_refused(fetcher, f"http://images.test:{site.port}/a.png?x=1")
    assert not site.hits


async def test_name_is_resolved_once_for_check_and_connection(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection uses the checked address. A rebound address is checked again at the next fetch."""
    fetcher = ImageFetcher(HostAllowlist([f"images.test:{site.port}"]), make_resolver([PUBLIC], [LOOPBACK]))
    connected: list[str] = []

    async def connect(address: str, *_: object) -> None:
        connected.append(address)
        raise OSError

    monkeypatch.setattr(fetcher._backend._network, "connect_tcp", connect)
    await assert_refused(fetcher, f"http://images.test:{site.port}/")
    assert connected == [PUBLIC]
    await assert_refused(fetcher, f"http://images.test:{site.port}/")
    assert connected == [PUBLIC]
    assert not site.hits


@pytest.mark.parametrize(
    ("redirect_to", "hits"),
    [
        ("http://169.254.169.254/latest", 1),
        ("file:///etc/passwd", 1),
        ("http://localhost:{port}/a.png?x=1", 1),
        ("", 4),
        ("/moved", 4),
    ],
)
async def test_redirect_to_a_refused_address_is_refused(site: Site, redirect_to: str, hits: int) -> None:
    host = f"{LOOPBACK}:{site.port}"
    site.redirect_to = redirect_to.format(port=site.port)
    await assert_refused(ImageFetcher(HostAllowlist([host])), f"http://{host}/moved")
    assert len(site.hits) == hits


async def test_redirect_within_the_allowlist_is_followed(site: Site) -> None:
    host, site.redirect_to = f"{LOOPBACK}:{site.port}", "/a.png?x=1"
    assert await ImageFetcher(HostAllowlist([host])).fetch(f"http://{host}/moved", "url") == PNG


@pytest.mark.parametrize("path", ["/nothing", "/zipped", "/endless", "/slow", "/nonsense"])
async def test_response_without_an_image_is_refused(site: Site, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetcher, "FETCH_TIMEOUT", 0.5)
    host = f"{LOOPBACK}:{site.port}"
    await assert_refused(ImageFetcher(HostAllowlist([host])), f"http://{host}{path}")


async def test_body_of_too_many_parts_is_refused() -> None:
    class OneByteParts:
        async def aiter_stream(self) -> AsyncIterator[bytes]:
            for _ in range(image_fetcher.MAX_SMALL_PARTS * 2):
                yield b"a"

    with pytest.raises(AddressRefused):
        await image_fetcher.read_bounded(OneByteParts(), image_fetcher.ByteBudget(image_fetcher.MAX_BYTES))  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["/tiny-chunks", "/informational"])
async def test_other_tasks_run_while_many_parts_arrive(site: Site, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetcher, "FETCH_TIMEOUT", 1)
    fetcher = ImageFetcher(HostAllowlist([f"{LOOPBACK}:{site.port}"]))
    fetches = [asyncio.create_task(assert_refused(fetcher, f"http://{LOOPBACK}:{site.port}{path}")) for _ in range(12)]
    longest, before = 0.0, time.perf_counter()
    while not all(task.done() for task in fetches):
        await asyncio.sleep(0)
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
    await asyncio.gather(*fetches)
    assert longest < 0.25  # with reads of 64 kB, one iteration takes 0.7 s


async def test_fetched_images_are_bounded_over_all_requests(site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    loader = ImageLoader([host])
    source = ImageRef(f"http://{host}/a.png?x=1", "url")
    with loader.fetch_memory.lease(None) as fetched:
        await fetched.reserve(155_000_000)
        with loader.memory.lease(None) as lease:
            waiting = asyncio.create_task(loader.load([source], lease))
            await asyncio.sleep(0.1)
            assert not site.hits
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    with loader.memory.lease(None) as lease:
        assert len(await loader.load([source], lease)) == 1


async def test_images_of_a_request_are_fetched_at_the_same_time(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_fetcher, "FETCH_TIMEOUT", 0.5)
    host = f"{LOOPBACK}:{site.port}"
    sources = [ImageRef(f"http://{host}/slow", f"url {number}") for number in range(4)]
    start = time.perf_counter()
    with pytest.raises(BadRequest) as error:
        await ImageFetcher(HostAllowlist([host])).fetch_all(sources, image_fetcher.MAX_BYTES)
    assert error.value.param in [source.param for source in sources]
    assert len(site.hits) == 4
    assert time.perf_counter() - start < 1.5


async def test_bytes_of_all_fetched_images_are_bounded(site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    fetcher = ImageFetcher(HostAllowlist([host]))
    sources = [ImageRef(f"http://{host}/a.png?x=1", "url")] * 3
    assert await fetcher.fetch_all(sources, 3 * len(PNG)) == [PNG] * 3
    with pytest.raises(BadRequest) as error:
        await fetcher.fetch_all(sources, 3 * len(PNG) - 1)
    assert error.value.code == "image_too_large"


async def test_key_that_fetches_many_images_leaves_room_for_others(site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    loader = ImageLoader([host], max_owner_bytes=128_000_000, max_owner_fetched_bytes=80_000_000)
    sources = [ImageRef(f"http://{host}/slow", "url")] * 16
    with loader.memory.lease("a") as lease, loader.memory.lease("b") as other:
        slow = asyncio.create_task(loader.load(sources, lease, "a"))
        await asyncio.wait_for(site.was_hit.wait(), 10)
        assert len(await loader.load([ImageRef(f"http://{host}/a.png?x=1", "url")], other, "b")) == 1
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
    with loader.fetch_memory.lease("a") as fetched:
        assert fetched.fits(80_000_000)


async def test_chat_requests_accept_image_urls_of_allowed_hosts(start_server: StartServer, site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    server = await start_server(image_hosts=host)
    cache = server.app.state.service.image_loader.cache
    for _ in range(2):
        assert (await server.chat(messages=image_messages(f"http://{host}/a.png?x=1"))).status_code == 200
    assert (cache.misses, cache.hits) == (1, 1)
    response = await server.chat(messages=image_messages(f"http://{host}/html"))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_image_url")
    assert (await start_server()).app.state.service.image_loader.fetcher.allowed._endpoints == set()
