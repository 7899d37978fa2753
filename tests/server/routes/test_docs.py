"""/docs: files of this server only, with integrity and a content security policy."""

from __future__ import annotations

import base64
import hashlib
import re

from tests.server.conftest import FakeServer, StartServer


async def test_page_loads_files_of_this_server_with_integrity(server: FakeServer) -> None:
    page = await server.http.get("/docs")
    references = re.findall(r'(?:src|href)="(/[^"]*)" integrity="sha384-([^"]+)"', page.text)
    assert [path.partition("?")[0] for path, _ in references] == [
        "/docs/swagger-ui.css",
        "/docs/swagger-ui-bundle.js",
        "/docs/initializer.js",
    ]
    assert len(re.findall(r"(?:src|href)=", page.text)) == len(references) + 1  # and an empty icon
    assert "//" not in page.text
    for path, digest in references:
        asset = await server.http.get(path)
        assert asset.status_code == 200
        assert base64.b64decode(digest) == hashlib.sha384(asset.content).digest()
        assert re.match("text/(css|javascript)", asset.headers["content-type"])


async def test_content_security_policy_allows_no_inline_script_and_no_other_host(server: FakeServer) -> None:
    page = await server.http.get("/docs")
    policy = dict(rule.split(" ", 1) for rule in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert not re.search(r"<script>|<style>| on\w+=", page.text)


async def test_other_files_are_not_served(server: FakeServer) -> None:
    for name in ("README.md", "LICENSE", "..%2fdocs.py", "%2e%2e/docs.py"):
        assert (await server.http.get(f"/docs/{name}")).status_code == 404


async def test_page_needs_a_key(start_server: StartServer) -> None:
    server = await start_server(api_keys="secret")
    for path in ("/docs", "/docs/swagger-ui.css"):
        assert (await server.http.get(path)).status_code == 401
