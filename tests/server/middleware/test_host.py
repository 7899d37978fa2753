"""Tests of the hosts that requests may name."""

from __future__ import annotations

import socket

import pytest
from pydantic import ValidationError

from server.host_names import is_ip_address, parse_host_header
from server.middleware.host import select_allowed_hosts
from server.settings import Settings
from tests.server.conftest import StartServer

LOCAL = ["127.0.0.1", "127.0.0.1:8000", "[::1]:8000", "localhost", "LOCALHOST:8000", "localhost.", "a.localhost"]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.localhost.example",
]
MALFORMED = ["localhost:x@evil.example", "localhost:@evil.example", "[::1]evil.example", "[::1", "localhost:80:80"]


@pytest.mark.parametrize("host", LOCAL)
async def test_a_local_server_serves_local_names_and_addresses(start_server: StartServer, host: str) -> None:
    server = await start_server()
    assert (await server.http.get("/v1/models", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", [*FOREIGN, *MALFORMED])
async def test_a_local_server_without_keys_refuses_the_names_of_other_sites(
    start_server: StartServer, host: str
) -> None:
    server = await start_server()
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("GET", "/"), ("POST", "/v1/files")):
        response = await server.http.request(method, path, headers={"host": host})
        assert response.status_code == 403
        assert "--allowed-hosts" in response.json()["error"]["message"]
    assert not server.engine.requests


@pytest.mark.parametrize(
    "fields",
    [{"host": "0.0.0.0"}, {"api_keys": "secret"}, {"allowed_hosts": "*"}, {"allowed_hosts": "a.example, evil.example"}],
)
async def test_the_operator_can_open_the_server_to_names(start_server: StartServer, fields: dict[str, str]) -> None:
    server = await start_server(**fields)
    headers = {"host": "evil.example:80", "authorization": "Bearer secret"}
    assert (await server.http.get("/v1/models", headers=headers)).status_code == 200


async def test_given_hosts_hold_with_keys_too(start_server: StartServer) -> None:
    server = await start_server(api_keys="secret", allowed_hosts="a.example")
    headers = {"authorization": "Bearer secret"}
    statuses = [
        (await server.http.get("/v1/models", headers=headers | {"host": host})).status_code
        for host in ("a.example", "b.example")
    ]
    assert statuses == [200, 403]


@pytest.mark.parametrize("entry", ["a.example.", "A.Example", "b.example, a.example"])
async def test_given_hosts_are_normalized(start_server: StartServer, entry: str) -> None:
    server = await start_server(api_keys="secret", allowed_hosts=entry)
    for host in ("a.example", "a.example.:80", "A.EXAMPLE"):
        headers = {"authorization": "Bearer secret", "host": host}
        assert (await server.http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "entry", ["a.example:8000", "[[::1]]", "http://a.example", "*.example", "a.example/v1", ".", "b\u00fc.example"]
)
def test_host_that_no_request_can_have_is_rejected_at_start(entry: str) -> None:
    with pytest.raises(ValidationError, match="allowed_hosts"):
        Settings(allowed_hosts=f"b.example, {entry}")


LOOPBACK = ["::1", "localhost", "127.0.0.2", "LOCALHOST", "127.1", "2130706433", "::ffff:127.0.0.1", "0:0:0:0:0:0:0:1"]


@pytest.mark.parametrize(
    ("host", "hosts"),
    [*((host, []) for host in LOOPBACK), ("box.invalid", ["*"]), ("a" * 64, ["*"]), ("0.0.0.0", ["*"]), ("::", ["*"])],
)
def test_the_default_depends_on_the_address(host: str, hosts: list[str]) -> None:
    assert select_allowed_hosts(Settings(host=host)) == hosts


def test_the_address_of_a_name_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *_: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, 0)) for address in {"box": ["192.0.2.2", "127.0.1.1"]}.get(host, ["192.0.2.2"])]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert select_allowed_hosts(Settings(host="box")) == []
    assert select_allowed_hosts(Settings(host="other")) == ["*"]


def test_parse_host_header_removes_port_and_brackets() -> None:
    assert [parse_host_header(host) for host in ("a:1", "a", "[::1]:8", "[::1]", "")] == ["a", "a", "::1", "::1", ""]
    assert [is_ip_address(host) for host in ("1.2.3.4", "::1", "1.2.3", "a", "")] == [True, True, False, False, False]
