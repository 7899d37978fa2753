"""Image URLs of internal addresses: as such, and behind the name of a host that is allowed."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any
from unittest.mock import patch

import httpcore

from bench.harness.chat_requests import build_request
from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import AttackTable, count_outcomes, measure_cost
from bench.hostile.bodies import CHAT, post
from decoding.errors import BadRequest
from server.media.host_allowlist import HostAllowlist
from server.media.image_fetcher import ImageFetcher

ALLOWED_HOST = "images.example.org"
REFUSED = "400 invalid_image_url"
URLS = (
    "http://127.0.0.1:{0}",
    "http://localhost:{0}",
    "http://127.1:{0}",
    "http://2130706433:{0}",
    "http://0x7f000001:{0}",
    "http://0.0.0.0:{0}",
    "http://[::1]:{0}",
    "http://[::ffff:127.0.0.1]:{0}",
    "http://10.0.0.1",
    "http://169.254.169.254/latest/meta-data",
    f"http://somebody:secret@{ALLOWED_HOST}",
    f"http://{ALLOWED_HOST}:{{0}}",
    "file:///etc/passwd",
    "ftp://a/b",
    "http://" + "a" * 300_000,
)
SPECIAL_ADDRESSES = {  # range -> addresses in it
    "this network": (str(IPv4Address(0)), "0.1.2.3"),
    "loopback": ("127.0.0.1", "127.255.255.254", "::1"),
    "private": ("10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.0.1", "fc00::1", "fd00::1"),
    "shared": ("100.64.0.1", "100.127.255.254"),
    "link-local": ("169.254.169.254", "fe80::1", "fe80::1%1"),
    "protocol assignments": ("192.0.0.1", "192.0.0.9", "2001::1", "2001:1ff::1"),
    "documentation": ("192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"),
    "benchmarks": ("198.18.0.1", "198.19.255.254", "2001:2::1"),
    "6to4 and its relays": ("192.88.99.1", "2002:7f00:1::1", "2002:808:808::1"),
    "multicast": ("224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"),
    "reserved": ("240.0.0.1", "255.255.255.255", "4000::1"),
    "unspecified": ("::",),
    "IPv4-compatible": ("::127.0.0.1", "::8.8.8.8"),
    "IPv4-mapped": ("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1"),
    "IPv4-translated": ("::ffff:0:127.0.0.1", "::ffff:0:7f00:1"),
    "NAT64": ("64:ff9b::127.0.0.1", "64:ff9b::a00:1", "64:ff9b:1::1", "64:ff9b:1::808:808"),
    "ISATAP": ("2600::5efe:7f00:1", "2600::200:5efe:a00:1"),
    "site-local": ("fec0::1", "feff::1"),
    "discard-only": ("100::1",),
    "ORCHID": ("2001:10::1", "2001:20::1"),
    "a public and a private one": ("8.8.8.8 127.0.0.1", "2606:4700::1111 ::1"),
}
PUBLIC_ADDRESSES = ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@contextmanager
def open_target() -> Iterator[tuple[int, list[object]]]:
    """Listen on all addresses of this machine and record connections.

    Yields:
        The port, and the addresses that have connected.
    """
    callers: list[object] = []
    has_dualstack = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if has_dualstack else socket.AF_INET
    with socket.create_server(("", 0), family=family, dualstack_ipv6=has_dualstack) as listener:

        def listen() -> None:
            while True:
                try:
                    connection, address = listener.accept()
                except OSError:
                    return
                connection.close()
                callers.append(address)

        threading.Thread(target=listen, daemon=True).start()
        yield listener.getsockname()[1], callers


async def attack_with_urls(server: ServerProcess, table: AttackTable) -> None:
    """Send URLs of internal addresses to a server that allows one host.

    Args:
        server: The server.
        table: Gets one row.
    """
    name = "addresses in URLs"
    if not table.is_selected(name):
        return
    with open_target() as (port, callers), measure_cost(server) as cost:
        bodies = [json.dumps(build_request(url.format(port), max_tokens=1)).encode() for url in URLS]
        answers = [await post(server.port, CHAT, body) for body in bodies]
    outcome = f"{count_outcomes(answers)}; {len(callers)} connections"
    passed = set(answers) == {REFUSED} and not callers
    table.add(name, len(URLS), outcome, cost=cost, limit="all refused, no connection", passed=passed)


class RecordingNetwork(httpcore.AsyncNetworkBackend):
    """Records the addresses to which a fetcher would connect, and connects to none."""

    def __init__(self) -> None:
        self.addresses: list[str] = []

    async def connect_tcp(self, host: str, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        """Record an address.

        Raises:
            ConnectError: Always.
        """
        self.addresses.append(host)
        raise httpcore.ConnectError


async def fetch_from(addresses: Sequence[str]) -> list[str]:
    """Fetch an image from an allowed host whose name has the given addresses.

    Args:
        addresses: Addresses that the resolver returns.

    Returns:
        The addresses to which the fetcher tried to connect.

    Raises:
        RuntimeError: The fetch did not fail.
    """

    async def resolve(_: str, __: int) -> Sequence[str]:
        return addresses

    network = RecordingNetwork()
    with patch("httpcore.AnyIOBackend", return_value=network):
        fetcher = ImageFetcher(HostAllowlist([ALLOWED_HOST]), resolve)
    try:
        await fetcher.fetch(f"https://{ALLOWED_HOST}/a.png", "url")
    except BadRequest:
        return network.addresses
    raise RuntimeError("there is no image to fetch")


def attack_with_resolved_addresses(table: AttackTable) -> None:
    """Let an allowed name have special addresses. It runs in this process, because the name has no real addresses.

    Args:
        table: Gets a row for each range, and one for public addresses.
    """
    for name, addresses in SPECIAL_ADDRESSES.items():
        if not table.is_selected(f"resolved address: {name}"):
            continue
        connections = [asyncio.run(fetch_from(address.split())) for address in addresses]
        outcome = ", ".join(str(addresses[index]) for index, made in enumerate(connections) if made)
        table.add(
            f"resolved address: {name}",
            len(addresses),
            f"connects to {outcome}" if outcome else "no connection",
            limit="no connection",
            passed=not outcome,
        )
    if table.is_selected("resolved address: public"):
        connections = [asyncio.run(fetch_from([address])) for address in PUBLIC_ADDRESSES]
        table.add(
            "resolved address: public",
            len(PUBLIC_ADDRESSES),
            f"{sum(map(bool, connections))} connections",
            limit="a connection each",
            passed=all(connections),
        )
