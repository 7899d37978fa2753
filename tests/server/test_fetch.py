"""Pictures from the network: only allowed hosts, only checked addresses, within bounds. Targets count their hits."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Sequence

import pytest

from decoding.errors import BadRequest
from server import fetch
from server.address import AllowList, is_public
from server.fetch import Fetcher
from server.settings import Settings
from tests.server.conftest import Serve, data_url, seeing

PNG = base64.b64decode(data_url().partition(",")[2])
LOOPBACK, PUBLIC = "127.0.0.1", "93.184.216.34"


class Site:
    """Answers by path, and remembers the first lines and Host headers that reached it."""

    def __init__(self) -> None:
        self.hits: list[str] = []
        self.port = 0
        self.moved_to = ""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.hits.append(request)
        head = "HTTP/1.1 200 OK\r\nconnection: close\r\n"
        match request.split()[1]:
            case "/a.png?x=1":
                writer.write(f"{head}content-length: {len(PNG)}\r\n\r\n".encode() + PNG)
            case "/moved":
                writer.write(f"HTTP/1.1 302 Found\r\nlocation: {self.moved_to}\r\ncontent-length: 0\r\n\r\n".encode())
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
            case "/nonsense":
                writer.write(b"\0\1\2\r\n\r\n")
            case _:
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
        writer.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    made = Site()

    talks: set[asyncio.Task[None]] = set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = asyncio.create_task(made.answer(reader, writer))
        talks.add(talk)
        await asyncio.wait([talk])
        writer.close()

    server = await asyncio.start_server(answer, LOOPBACK, 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    for talk in talks:
        talk.cancel()
    await asyncio.gather(*talks, return_exceptions=True)
    await asyncio.sleep(0.01)


def resolving(*answers: Sequence[str]) -> fetch.Resolve:
    """A name server that says something else each time."""
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        return left.pop(0)

    return resolve


async def refused(fetcher: Fetcher, url: str) -> None:
    began = time.perf_counter()
    with pytest.raises(BadRequest) as error:
        await fetcher.fetch(url, "url")
    assert (error.value.code, error.value.param) == ("invalid_image_url", "url")
    assert error.value.message == fetch.NOT_FETCHED
    assert time.perf_counter() - began < 1


async def test_an_allowed_address(site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    assert await Fetcher(AllowList([host])).fetch(f"http://{host}/a.png?x=1#f", "url") == PNG
    assert f"\r\nHost: {host}\r\n" in site.hits[0]


async def test_a_name_keeps_its_host_header(site: Site) -> None:
    allowed = AllowList([f"pictures.test:{site.port}", f"{LOOPBACK}:{site.port}"])
    fetcher = Fetcher(allowed, resolving([LOOPBACK]))
    assert await fetcher.fetch(f"http://pictures.test:{site.port}/a.png?x=1", "url") == PNG
    assert f"\r\nHost: pictures.test:{site.port}\r\n" in site.hits[0]


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
        "http://localhost:{port}\\@pictures.test/",
        "http://local\thost:{port}/",
        "http://localhost:{port}/\r\nX: y",
        "http://localhost%2f:{port}/",
        "http://other.test:{port}/",
        "https://",
        "http://[",
        "http://localhost:99999/",
    ],
)
async def test_what_is_not_on_the_list_is_not_touched(site: Site, url: str) -> None:
    fetcher = Fetcher(AllowList([f"localhost:{site.port}", f"pictures.test:{site.port}"]), resolving())
    await refused(fetcher, url.format(port=site.port))
    assert not site.hits


@pytest.mark.parametrize("addresses", [[LOOPBACK], [PUBLIC, LOOPBACK], ["::ffff:127.0.0.1"], ["169.254.169.254"], []])
async def test_a_name_with_a_private_address(site: Site, addresses: list[str]) -> None:
    fetcher = Fetcher(AllowList([f"pictures.test:{site.port}"]), resolving(addresses))
    await refused(fetcher, f"http://pictures.test:{site.port}/a.png?x=1")
    assert not site.hits


async def test_a_name_that_changes_its_address_between_check_and_connection(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resolved once: what was checked is what is dialled, and the second answer is never asked for."""
    fetcher = Fetcher(AllowList([f"pictures.test:{site.port}"]), resolving([PUBLIC], [LOOPBACK]))
    dialled: list[str] = []

    async def dial(address: str, *_: object) -> None:
        dialled.append(address)
        raise OSError

    monkeypatch.setattr(fetcher._dialler._network, "connect_tcp", dial)
    await refused(fetcher, f"http://pictures.test:{site.port}/")
    assert dialled == [PUBLIC]
    await refused(fetcher, f"http://pictures.test:{site.port}/")
    assert dialled == [PUBLIC]
    assert not site.hits


@pytest.mark.parametrize(
    ("moved_to", "hits"),
    [
        ("http://169.254.169.254/latest", 1),
        ("file:///etc/passwd", 1),
        ("http://localhost:{port}/a.png?x=1", 1),
        ("", 4),
        ("/moved", 4),
    ],
)
async def test_redirects_that_lead_astray(site: Site, moved_to: str, hits: int) -> None:
    host = f"{LOOPBACK}:{site.port}"
    site.moved_to = moved_to.format(port=site.port)
    await refused(Fetcher(AllowList([host])), f"http://{host}/moved")
    assert len(site.hits) == hits


async def test_a_redirect_within_the_list(site: Site) -> None:
    host, site.moved_to = f"{LOOPBACK}:{site.port}", "/a.png?x=1"
    assert await Fetcher(AllowList([host])).fetch(f"http://{host}/moved", "url") == PNG


@pytest.mark.parametrize("path", ["/nothing", "/zipped", "/endless", "/slow", "/nonsense"])
async def test_answers_that_are_no_picture(site: Site, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "SECONDS", 0.5)
    host = f"{LOOPBACK}:{site.port}"
    await refused(Fetcher(AllowList([host])), f"http://{host}{path}")


async def test_over_the_api(serve: Serve, site: Site) -> None:
    host = f"{LOOPBACK}:{site.port}"
    served = await serve(image_hosts=host)
    cache = served.app.state.service.pictures.cache
    for _ in range(2):
        assert (await served.chat(messages=seeing(f"http://{host}/a.png?x=1"))).status_code == 200
    assert (cache.misses, cache.hits) == (1, 1)
    response = await served.chat(messages=seeing(f"http://{host}/html"))
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_image_url")
    assert (await serve()).app.state.service.pictures.fetcher.allowed._ends == set()


@pytest.mark.parametrize(
    "address", [LOOPBACK, "::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "100.64.0.1"]
)
def test_addresses_that_are_not_public(address: str) -> None:
    from ipaddress import ip_address

    assert not is_public(ip_address(address))
    assert is_public(ip_address(PUBLIC))


@pytest.mark.parametrize("hosts", ["http://a.test", "a.test/x", "a.test:x", "u@a.test", "a b"])
def test_a_list_that_is_misspelt(hosts: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Settings(image_hosts=hosts)
