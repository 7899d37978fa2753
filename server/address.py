"""Which hosts pictures may be fetched from, and which network addresses those may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

LONGEST = 2048
PORTS = {"http": 80, "https": 443}
PLAIN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash
NAT64 = IPv6Network("64:ff9b::/96")


class Refused(Exception):
    """The address is not one to fetch from. Says nothing of why: that would map the network for a stranger."""


@dataclass(frozen=True, slots=True)
class Target:
    scheme: str
    host: str
    port: int
    path: str  # with the query


def target(url: str) -> Target:
    """Raises: Refused: no http(s) URL, or one with a user name, strange characters or a fragment of a port."""
    if len(url) > LONGEST or not PLAIN.fullmatch(url):
        raise Refused
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise Refused from None
    if parts.scheme not in PORTS or not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        raise Refused
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname.rstrip("."), PORTS[parts.scheme] if port is None else port, path)


class AllowList:
    """`host` stands for ports 80 and 443, `host:port` for that one."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._ends = {end for host in hosts for end in ends(host)}
        self._names = {host for host, _ in self._ends}

    def __bool__(self) -> bool:
        return bool(self._ends)

    def check(self, target: Target) -> None:
        """Raises: Refused."""
        if (target.host, target.port) not in self._ends:
            raise Refused

    def check_addresses(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """All of a host's addresses: one that is private is reached only if it is itself on the list.

        Raises: Refused.
        """
        if not addresses or not all(self._is_fit(host, port, ip_address(address)) for address in addresses):
            raise Refused

    def _is_fit(self, host: str, port: int, address: IPv4Address | IPv6Address) -> bool:
        if is_public(address) or (str(address), port) in self._ends:
            return True
        return host == "localhost" and address.is_loopback  # a name that no name server gives away


def ends(host: str) -> list[tuple[str, int]]:
    """Raises: ValueError: not `host` or `host:port`."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    if not name or parts.path or "@" in host or not PLAIN.fullmatch(host):
        raise ValueError(f"'{host}' is not written as host or host:port")
    return [(name, port)] if port is not None else [(name, each) for each in PORTS.values()]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Looks into the IPv4 address that an IPv6 one may carry."""
    if isinstance(address, IPv6Address):
        carried = address.ipv4_mapped or address.sixtofour or (address.teredo and address.teredo[1])
        if address in NAT64:
            carried = IPv4Address(int(address) & 0xFFFFFFFF)
        if carried:
            return is_public(carried)
    return address.is_global and not address.is_multicast
