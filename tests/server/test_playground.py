"""The page at /: its policy and its door."""

from __future__ import annotations

import re

import pytest

from server.playground import PAGE
from tests.server.conftest import Serve

KEYS = {"api_keys": "secret"}


async def test_the_policy_names_the_page_and_nothing_else(serve: Serve) -> None:
    response = await (await serve()).http.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert not re.search(r"unsafe|http|\*", policy)
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=.?(?:http|//)", response.text)
    assert len(response.content) < 30_000


@pytest.mark.parametrize(
    ("settings", "statuses"),
    [
        ({}, (200, 200)),
        (KEYS, (401, 401)),
        (KEYS | {"playground": "open"}, (200, 401)),
        ({"playground": "off"}, (404, 200)),
    ],
)
async def test_it_is_as_open_as_the_operator_wants(
    serve: Serve, settings: dict[str, str], statuses: tuple[int, int]
) -> None:
    http = (await serve(**settings)).http
    pages = [(await http.get(path)).status_code for path in ("/", "/samples", "/samples/kitchen.png")]
    assert (set(pages), (await http.get("/v1/models")).status_code) == ({statuses[0]}, statuses[1])


@pytest.mark.parametrize("name", ["..%2f..%2fpyproject.toml", "kitchen", "%2e%2e/README.md"])
async def test_nothing_but_samples_is_given_away(serve: Serve, name: str) -> None:
    assert (await (await serve()).http.get(f"/samples/{name}")).status_code == 404


def test_the_page_is_one_file() -> None:
    assert PAGE.read_text().count("<script") == PAGE.read_text().count("<style") == 1
