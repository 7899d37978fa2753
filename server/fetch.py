"""Pictures from allowed hosts. The address that was checked is the address that is connected to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from urllib.parse import urljoin

import anyio
import httpcore

from decoding.errors import BadRequest
from server.address import AllowList, Refused, target

SECONDS = 5.0  # for all of it, redirects included
MOST_BYTES = 10_000_000
MOST_REDIRECTS = 3
HEADERS = [("user-agent", "onlyseen"), ("accept", "image/*"), ("accept-encoding", "identity")]
NOT_FETCHED = "The image cannot be fetched: its address is not allowed, or does not answer with an image in time."

# What names, networks and hostile answers raise: ValueError where a URL or a header cannot be read.
FAILURES = (OSError, ValueError, httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException)

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class Fetcher:
    def __init__(self, allowed: AllowList, resolve: Resolve | None = None) -> None:
        self.allowed = allowed
        self._dialler = Dialler(allowed, resolve or resolved)

    async def fetch(self, url: str, param: str) -> bytes:
        """Raises: BadRequest: not allowed, not there, too slow or too large; which, is not told."""
        try:
            with anyio.fail_after(SECONDS):
                return await self._follow(url)
        except (Refused, *FAILURES):
            raise BadRequest(NOT_FETCHED, param=param, code="invalid_image_url") from None

    async def _follow(self, url: str) -> bytes:
        for _ in range(MOST_REDIRECTS + 1):
            found = await self._get(url)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise Refused

    async def _get(self, url: str) -> bytes | str:
        """What is there, or where else to look."""
        goal = target(url)
        self.allowed.check(goal)
        where = httpcore.URL(
            scheme=goal.scheme.encode(), host=goal.host.encode(), port=goal.port, target=goal.path.encode()
        )
        async with (
            httpcore.AsyncConnectionPool(network_backend=self._dialler) as pool,
            pool.stream("GET", where, headers=HEADERS) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308):
                return headers.get(b"location", b"").decode("ascii")
            if response.status != 200 or headers.get(b"content-encoding", b"identity") != b"identity":
                raise Refused
            return await bounded(response)


async def bounded(response: httpcore.Response) -> bytes:
    content = bytearray()
    async for piece in response.aiter_stream():
        content += piece
        if len(content) > MOST_BYTES:
            raise Refused
    return bytes(content)


class Dialler(httpcore.AsyncNetworkBackend):
    """Resolves a name once, checks all its addresses, and connects to one of these."""

    def __init__(self, allowed: AllowList, resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the signature is httpcore's
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await self._resolve(host, port)
        self._allowed.check_addresses(host, port, addresses)
        for address in addresses[:-1]:
            try:
                return await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError:
                continue
        return await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)


async def resolved(host: str, port: int) -> list[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
