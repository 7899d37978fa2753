"""Fetch images from allowed hosts. The checked address is the address of the connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any
from urllib.parse import urljoin

import anyio
import httpcore

from decoding.errors import BadRequest
from server.media.host_allowlist import AddressRefused, HostAllowlist, parse_target
from server.media.image_ref import ImageRef

FETCH_TIMEOUT = 5.0  # seconds for the whole fetch, redirects included
MAX_BYTES = 10_000_000
MAX_SMALL_PARTS = 2_000  # chunks of a body beside one for each `PART_BYTES`; more of them would only cost time
PART_BYTES = 16
READ_BYTES = (
    4096  # that are parsed before other tasks run. They can hold hundreds of chunks or of informational responses
)
MAX_REDIRECTS = 3
HEADERS = [("user-agent", "onlyseen"), ("accept", "image/*"), ("accept-encoding", "identity")]
TOO_MANY_BYTES = "The images that this request names by URL have too many bytes together: send fewer or smaller ones."
FETCH_FAILED = "The image cannot be fetched: its address is not allowed, or does not return an image in time."

# Errors of name resolution, of networks and of hostile responses. ValueError: a URL or a header cannot be parsed.
FETCH_ERRORS = (OSError, ValueError, httpcore.ProtocolError, httpcore.NetworkError, httpcore.TimeoutException)

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]


class ImageFetcher:
    """Downloads images from the hosts of an allowlist, within bounds of time, size and redirects."""

    def __init__(self, allowed: HostAllowlist, resolve: Resolver | None = None) -> None:
        self.allowed = allowed
        self._ssl_context = httpcore.default_ssl_context() if allowed else None  # loading the certificates is slow
        self._backend = AllowlistBackend(allowed, resolve or resolve_host)

    async def fetch_all(self, sources: Sequence[ImageRef], max_bytes: int) -> list[bytes]:
        """Download the images of a request at the same time.

        Args:
            sources: The addresses, with the fields of the request that hold them.
            max_bytes: Bytes of all images together.

        Returns:
            The contents, in the order of the sources. The first failure ends all downloads.
        """
        budget = ByteBudget(max_bytes)
        tasks = [asyncio.create_task(self.fetch(source.url, source.param, budget)) for source in sources]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def fetch(self, url: str, param: str, budget: ByteBudget | None = None) -> bytes:
        """Download an image.

        Args:
            url: Address of the image.
            param: Field of the request that holds the URL.
            budget: Bytes that the request may still download.

        Returns:
            The content.

        Raises:
            BadRequest: The address is not allowed, or its answer is missing, too slow or too large. The message is
                the same in every case, unless the images of the request are too large together.
        """
        try:
            with anyio.fail_after(FETCH_TIMEOUT):
                return await self._follow_redirects(url, budget or ByteBudget(MAX_BYTES))
        except BudgetExceeded:
            raise BadRequest(TOO_MANY_BYTES, param=param, code="image_too_large") from None
        except (AddressRefused, *FETCH_ERRORS):
            raise BadRequest(FETCH_FAILED, param=param, code="invalid_image_url") from None

    async def _follow_redirects(self, url: str, budget: ByteBudget) -> bytes:
        for _ in range(MAX_REDIRECTS + 1):
            result = await self._get(url, budget)
            if isinstance(result, bytes):
                return result
            url = urljoin(url, result)
        raise AddressRefused

    async def _get(self, url: str, budget: ByteBudget) -> bytes | str:
        """Return the content, or the location of a redirect."""
        target = parse_target(url)
        self.allowed.check(target)
        parsed = httpcore.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        async with (
            httpcore.AsyncConnectionPool(self._ssl_context, network_backend=self._backend) as pool,
            pool.stream("GET", parsed, headers=HEADERS) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers}
            if response.status in (301, 302, 303, 307, 308):
                return headers.get(b"location", b"").decode("ascii")
            if response.status != 200 or headers.get(b"content-encoding", b"identity") != b"identity":
                raise AddressRefused
            return await read_bounded(response, budget)


class BudgetExceeded(Exception):
    """The images of a request have too many bytes together."""


class ByteBudget:
    """Bytes that the images of one request may have together."""

    def __init__(self, max_bytes: int) -> None:
        self._bytes_left = max_bytes

    def spend(self, count: int) -> None:
        """Count bytes.

        Raises:
            BudgetExceeded: There are not so many left.
        """
        self._bytes_left -= count
        if self._bytes_left < 0:
            raise BudgetExceeded


async def read_bounded(response: httpcore.Response, budget: ByteBudget) -> bytes:
    """Read a body of at most `MAX_BYTES`, whose parts are not too many for its size.

    Args:
        response: The response.
        budget: Bytes that the request may still download.

    Returns:
        The body.

    Raises:
        AddressRefused: The body is longer, or has more parts.
    """
    content, parts = bytearray(), 0
    async for chunk in response.aiter_stream():
        content += chunk
        parts += 1
        if len(content) > MAX_BYTES or parts > MAX_SMALL_PARTS + len(content) // PART_BYTES:
            raise AddressRefused
        budget.spend(len(chunk))
    return bytes(content)


class ShortReadStream(httpcore.AsyncNetworkStream):
    """A connection that returns few bytes at a time, and lets other tasks run before each read."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        await asyncio.sleep(0)
        return await self._stream.read(min(max_bytes, READ_BYTES), timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore.AsyncNetworkStream:
        return ShortReadStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class AllowlistBackend(httpcore.AsyncNetworkBackend):
    """Resolves a name once, checks all its addresses, and connects to one of these addresses."""

    def __init__(self, allowed: HostAllowlist, resolve: Resolver) -> None:
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
        """Connect to the first checked address that answers."""
        addresses = await self._resolve(host, port)
        self._allowed.check_addresses(host, port, addresses)
        for address in addresses[:-1]:
            try:
                stream = await self._network.connect_tcp(address, port, timeout, local_address, socket_options)
                return ShortReadStream(stream)
            except httpcore.ConnectError:
                continue
        stream = await self._network.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)
        return ShortReadStream(stream)


async def resolve_host(host: str, port: int) -> list[str]:
    """Return the distinct addresses of a host, in the resolver's order."""
    results = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in results))
