"""The hosts from which images may be fetched, and the addresses that are never reached."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from server.media.host_allowlist import is_public
from server.settings import Settings


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "100.64.0.1",  # carrier-grade NAT
        "169.254.169.254",
        "192.0.0.9",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::7f00:1",  # IPv4-compatible
        "::808:808",
        "::ffff:10.0.0.1",
        "::ffff:0:7f00:1",  # IPv4-translated
        "::ffff:0:808:808",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "64:ff9b:1::808:808",
        "100::1",
        "2001::1",  # Teredo
        "2001:2::1",
        "2001:20::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:808:808::1",
        "2606:4700::5efe:7f00:1",  # ISATAP
        "2606:4700::200:5efe:a00:1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_special_address_is_not_public(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_address_is_public(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize("hosts", ["http://a.test", "a.test/x", "a.test:x", "u@a.test", "a b"])
def test_invalid_allowlist_entry_is_refused(hosts: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Settings(image_hosts=hosts)
