"""Caches are separate for each API key, unless the operator shares them."""

from __future__ import annotations

import json
from typing import Any

from server.media.images import ImageCache
from tests.server.conftest import FakeServer, StartServer, chat_request, data_url, image_messages


async def post(server: FakeServer, key: str, path: str = "/v1/chat/completions", **fields: Any) -> Any:
    body = chat_request(messages=image_messages(), **fields)
    response = await server.http.post(path, json=body, headers={"authorization": f"Bearer {key}"})
    assert response.status_code == 200, response.text
    return response


def image_cache(server: FakeServer) -> ImageCache:
    cache: ImageCache = server.app.state.service.image_loader.cache
    return cache


async def test_each_key_has_its_own_caches(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two")
    for key in ("one", "two", "one", "two"):
        await post(server, key)
    salts = [request.cache_salt for request in server.engine.requests]
    assert len(set(salts)) == 2
    assert None not in salts
    assert salts[:2] == salts[2:]
    assert (image_cache(server).misses, image_cache(server).hits) == (2, 2)


async def test_every_route_uses_the_caches_of_its_key(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two")
    await post(server, "one")
    for key in ("one", "two"):
        headers = {"authorization": f"Bearer {key}"}
        messages = {"model": "tiny", "messages": image_messages()}
        content = [{"type": "input_image", "image_url": data_url()}, {"type": "input_text", "text": "Hello."}]
        answer = {"model": "tiny", "input": [{"role": "user", "content": content}]}
        text = {"model": "tiny", "prompt": "Hello."}
        for path, body in (("/tokenize", messages), ("/v1/responses", answer), ("/v1/completions", text)):
            response = await server.http.post(path, json=body, headers=headers)
            assert response.status_code == 200, response.text
    assert (image_cache(server).misses, image_cache(server).hits) == (2, 3)
    salts = [request.cache_salt for request in server.engine.requests]
    assert salts[0] == salts[1] == salts[2] != salts[3] == salts[4]


async def test_batch_uses_the_caches_of_its_key(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two")
    await post(server, "one")
    headers = {"authorization": "Bearer one"}
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat_request()}
    upload = {"purpose": (None, "batch"), "file": ("lines.jsonl", json.dumps(line).encode())}
    file_id = (await server.http.post("/v1/files", files=upload, headers=headers)).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch = (await server.http.post("/v1/batches", json=body, headers=headers)).json()
    while batch["status"] not in ("completed", "failed"):
        batch = (await server.http.get(f"/v1/batches/{batch['id']}", headers=headers)).json()
    assert batch["status"] == "completed"
    interactive, batched = server.engine.requests
    assert batched.cache_salt == interactive.cache_salt is not None


async def test_operator_can_share_the_caches(start_server: StartServer) -> None:
    server = await start_server(api_keys="one,two", share_caches=True)
    for key in ("one", "two"):
        await post(server, key)
    assert {request.cache_salt for request in server.engine.requests} == {None}
    assert (image_cache(server).misses, image_cache(server).hits) == (1, 1)


async def test_server_without_keys_shares_its_caches(server: FakeServer) -> None:
    for _ in range(2):
        assert (await server.chat(messages=image_messages())).status_code == 200
    assert {request.cache_salt for request in server.engine.requests} == {None}
    assert image_cache(server).hits == 1


async def test_salt_is_no_plain_hash_of_the_key(start_server: StartServer) -> None:
    first, second = [await start_server(api_keys="one") for _ in range(2)]
    for server in (first, second):
        await post(server, "one")
    assert first.engine.requests[0].cache_salt != second.engine.requests[0].cache_salt
