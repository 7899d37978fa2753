"""The hosts from which images may be fetched, and the network addresses that these hosts may have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

MAX_URL_LENGTH = 2048
DEFAULT_PORTS = {"http": 80, "https": 443}
URL_CHARACTERS = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash
NAT64 = IPv6Network("64:ff9b::/96")
GLOBAL_UNICAST = IPv6Network("2000::/3")  # excludes IPv4-compatible, IPv4-translated and site-local addresses
# Blocks of global unicast that IANA reserves. Some versions of `ipaddress` count some of them as global.
RESERVED_IPV6 = tuple(
    IPv6Network(block)
    for block in (
        "2001::/23",  # protocol assignments with Teredo, benchmarking and ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
RESERVED_IPV4 = tuple(
    IPv4Network(block)
    for block in (
        "192.0.0.0/24",  # protocol assignments
        "192.88.99.0/24",  # relays of 6to4
    )
)
ISATAP_IDS = (0x5EFE, 0x02005EFE)  # bits 32 to 63 of an address that holds an IPv4 address in its last 32 bits


class AddressRefused(Exception):
    """The server does not fetch from this address.

    The exception carries no reason, because a reason would let clients map the network.
    """


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of an image URL that a connection needs."""

    scheme: str
    host: str
    port: int
    path: str  # with the query


def parse_target(url: str) -> Target:
    """Parse an image URL.

    Returns:
        Its parts, with the default port of its scheme.

    Raises:
        AddressRefused: It is no http(s) URL, is too long, has an invalid port, or holds a user name or a character
            outside of printable ASCII.
    """
    if len(url) > MAX_URL_LENGTH or not URL_CHARACTERS.fullmatch(url):
        raise AddressRefused
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise AddressRefused from None
    if parts.scheme not in DEFAULT_PORTS or not parts.hostname or "@" in parts.netloc or "%" in parts.netloc:
        raise AddressRefused
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname.rstrip("."), DEFAULT_PORTS[parts.scheme] if port is None else port, path)


class HostAllowlist:
    """The hosts that an operator allows. `host` means ports 80 and 443, `host:port` for that port alone."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self._endpoints = {endpoint for host in hosts for endpoint in parse_endpoints(host)}

    def __bool__(self) -> bool:
        return bool(self._endpoints)

    def check(self, target: Target) -> None:
        """Check the host and the port of a URL.

        Raises:
            AddressRefused: They are not on the list.
        """
        if (target.host, target.port) not in self._endpoints:
            raise AddressRefused

    def check_addresses(self, host: str, port: int, addresses: Sequence[str]) -> None:
        """Check all addresses of a host. A private address is allowed only if it is itself on the list.

        Raises:
            AddressRefused: An address is not allowed, or there is none.
        """
        if not addresses or not all(self._is_allowed(host, port, ip_address(address)) for address in addresses):
            raise AddressRefused

    def _is_allowed(self, host: str, port: int, address: IPv4Address | IPv6Address) -> bool:
        if is_public(address) or (str(address), port) in self._endpoints:
            return True
        return host == "localhost" and address.is_loopback  # no name server hands out this name


def parse_endpoints(host: str) -> list[tuple[str, int]]:
    """Parse an entry of the allowlist.

    Args:
        host: `host` or `host:port`.

    Returns:
        Pairs of host and port.

    Raises:
        ValueError: The entry has another form.
    """
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        name, port = None, None
    if not name or parts.path or "@" in host or not URL_CHARACTERS.fullmatch(host):
        raise ValueError(f"'{host}' does not have the form host or host:port")
    return [(name, port)] if port is not None else [(name, default) for default in DEFAULT_PORTS.values()]


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address is globally routable.

    An IPv4 address inside an IPv6 address is checked too. Of the ways to embed one, only IPv4-mapped addresses, the
    well-known prefix of NAT64 and ISATAP are accepted at all.
    """
    if isinstance(address, IPv4Address):
        is_reserved = address.is_multicast or any(address in block for block in RESERVED_IPV4)
        return address.is_global and not is_reserved
    if address.scope_id is not None:
        return False
    last_bits = IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None or address in NAT64:
        return is_public(last_bits)
    if (int(address) >> 32) & 0xFFFFFFFF in ISATAP_IDS and not is_public(last_bits):
        return False
    is_reserved = any(address in block for block in RESERVED_IPV6)
    return address.is_global and address in GLOBAL_UNICAST and not is_reserved
