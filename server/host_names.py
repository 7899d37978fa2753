"""Names of hosts: those of the Host header, of the Origin header and of the settings."""

from __future__ import annotations

import re
import socket
from ipaddress import IPv6Address, ip_address

EVERY_HOST = "*"
EVERY_ORIGIN = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}
HOST_PATTERN = re.compile(r"(?:\[([^\[\]@/]*)\]|([^\[\]:@/]*))(?::\d*)?", re.ASCII)
ORIGIN_PATTERN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<host>\[[0-9a-f:.]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?", re.ASCII
)
NAME_PATTERN = re.compile(r"[\w-]+(\.[\w-]+)*", re.ASCII)


def parse_host_header(value: str) -> str:
    """Return the host that a Host header names.

    Args:
        value: Value of the header: a name or an IP address, with or without a port. An IPv6 address is in brackets.

    Returns:
        The host as it is written, without its port and brackets. Empty if the value has another form, or no host.
    """
    match = HOST_PATTERN.fullmatch(value)
    return match[1] or match[2] or "" if match else ""


def is_ip_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def normalize_host(host: str) -> str:
    """Return the form in which hosts without a port are compared.

    A dot at the end of a name has no meaning here. Equal IP addresses have one form, without brackets.
    """
    name = host.lower().removesuffix(".")
    address = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    return str(ip_address(address)) if is_ip_address(address) else name


def check_allowed_host(host: str) -> None:
    """Check an entry of the list of allowed hosts.

    Args:
        host: The entry.

    Raises:
        ValueError: No host equals it, because it is no name, IP address or "*".
    """
    name = normalize_host(host)
    if name != EVERY_HOST and not NAME_PATTERN.fullmatch(name) and not is_ip_address(name):
        raise ValueError(
            f"'{host}' is no name of a host; give it without a scheme, port or path, or '*' for every name"
        )


def check_origin(origin: str) -> None:
    """Check an entry of the list of origins.

    Args:
        origin: The entry.

    Raises:
        ValueError: No browser sends it, because it is neither an origin nor "*".
    """
    if origin == EVERY_ORIGIN:
        return
    match = ORIGIN_PATTERN.fullmatch(origin.lower())
    if match is None:
        raise ValueError(f"'{origin}' is no origin; it has the form SCHEME://HOST or SCHEME://HOST:PORT, or is '*'")
    if match["port"] and int(match["port"]) == DEFAULT_PORTS.get(match["scheme"]):
        raise ValueError(f"'{origin}': browsers leave out port {match['port']} with {match['scheme']}, so leave it out")


def has_loopback_address(host: str) -> bool:
    """Return whether a server that listens on a host can get a loopback address. Slow: it can ask the resolver.

    The socket of the server has the address family that uvicorn selects, and one of the addresses of the host.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        found = socket.getaddrinfo(host, None, family, socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the server cannot listen on it
        return False
    addresses = [ip_address(address[0]) for *_, address in found]
    return any(
        address.is_loopback
        or (isinstance(address, IPv6Address) and address.ipv4_mapped is not None and address.ipv4_mapped.is_loopback)
        for address in addresses
    )
