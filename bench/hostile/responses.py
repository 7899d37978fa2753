"""Responses that cost much: a document that many request first, responses that nobody reads, and long answers."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Sequence

from bench.harness.chat_requests import build_request
from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import NORMAL_LIMIT, AttackTable, count_outcomes, measure_cost
from bench.hostile.bodies import CHAT, LONG_ANSWERS, PARALLEL, post
from bench.hostile.connections import NORMAL
from bench.hostile.images import COSTLY_SIDE, draw_noise

FIRST_REQUESTS = 40
UNREAD_CONNECTIONS = 100
PIPELINED_REQUESTS = 30  # on each of them: 7 MB, more than the buffers of the kernel take
REQUEST = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n%s\r\n"
RECEIVE_BUFFER = 4096  # bytes that the kernel takes from the server
CLOSE_TIMEOUT = 150.0  # seconds; the server closes after 60, or after 120 if the next request waits behind the response
ANSWERS = "8 long answers of four rows to 12 MP, with 20 log-probabilities per token"
CHECKED_ANSWERS = "8 answers to 12 MP that follow a schema of 400 properties, with 20 log-probabilities and a check"
PROPERTIES: tuple[dict[str, object], ...] = (
    {"type": "string", "minLength": 5, "maxLength": 60},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 9},
    {
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "number"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
)


async def get_document(port: int) -> str:
    """Request /openapi.json on a connection of its own, and return the status."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(REQUEST % b"Connection: close\r\n")
        return (await reader.read()).split(b" ", 2)[1].decode()
    finally:
        writer.close()


async def leave_unread(port: int) -> str:
    """Request a document many times, read nothing, and wait for the server to close the connection.

    Returns:
        "closed", or "still open" after `CLOSE_TIMEOUT`.
    """
    loop, ends_at = asyncio.get_running_loop(), time.monotonic() + CLOSE_TIMEOUT
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        await loop.sock_connect(connection, ("127.0.0.1", port))
        await loop.sock_sendall(connection, (REQUEST % b"") * PIPELINED_REQUESTS)
        while time.monotonic() < ends_at:
            await asyncio.sleep(1)
            try:
                # Only a sender notices that the connection is closed, as long as it reads nothing.
                await asyncio.wait_for(loop.sock_sendall(connection, b"G"), 1)
            except ConnectionError:
                return "closed"
            except TimeoutError:
                continue
    return "still open"


async def attack_with_documents(server: ServerProcess, table: AttackTable) -> None:
    """Let many clients be the first to request a document, and then many that do not read it.

    Args:
        server: A server of which no document has been requested.
        table: Gets a row for each attack.
    """
    name = "GET /openapi.json, for the first time"
    if table.is_selected(name):
        with measure_cost(server) as cost:
            statuses = await asyncio.gather(*(get_document(server.port) for _ in range(FIRST_REQUESTS)))
        table.add(name, FIRST_REQUESTS, count_outcomes(statuses), cost=cost)
    name = "GET /openapi.json, not read"
    if not table.is_selected(name):
        return
    with measure_cost(server) as cost:
        tasks = [asyncio.create_task(leave_unread(server.port)) for _ in range(UNREAD_CONNECTIONS)]
        await asyncio.sleep(2)
        started_at = time.perf_counter()
        answer = await post(server.port, CHAT, json.dumps(NORMAL).encode())
        seconds = time.perf_counter() - started_at
        ends = await asyncio.gather(*tasks)
    table.add(
        name,
        UNREAD_CONNECTIONS,
        f"normal request: {answer} in {seconds:.2f} s; {count_outcomes(ends)}",
        cost=cost,
        limit=f"normal request {NORMAL_LIMIT:.0f} s, all closed",
        passed=answer == "200" and seconds <= NORMAL_LIMIT and set(ends) == {"closed"},
    )


def build_schema(seed: int) -> dict[str, object]:
    """Return a schema of 400 properties whose names differ from those of other seeds."""
    properties = {f"field_{seed}_{number}": PROPERTIES[number % len(PROPERTIES)] for number in range(400)}
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def build_checked_request(seed: int) -> bytes:
    """Return a body that takes memory of every kind: an image, views for a check, a schema, rows and a large answer."""
    image = draw_noise("RGB", COSTLY_SIDE, seed, "png", compress_level=1)
    fields = {
        "n": 8,
        "max_tokens": 400,
        "temperature": 1,
        "seed": seed,
        "logprobs": True,
        "top_logprobs": 20,
        "decoding": {"strategy": "plain", "check": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": build_schema(seed)}},
    }
    return json.dumps(build_request(image, **fields)).encode()


def build_long_request() -> bytes:
    """Return a body that asks for the largest answers about the largest image."""
    image = draw_noise("RGB", COSTLY_SIDE, 0, "png", compress_level=1)
    fields = {"max_tokens": 400, "logprobs": True, "top_logprobs": 20, "decoding": {"strategy": "vcd+icd+m3id"}}
    return json.dumps(build_request(image, **LONG_ANSWERS | fields)).encode()


async def attack_with_answers(server: ServerProcess, table: AttackTable) -> None:
    """Send one request for the largest answers.

    Args:
        server: A fresh server, which has not yet taken memory for others.
        table: Gets a row.
    """
    await _add_answers(server, table, ANSWERS, [build_long_request()])


async def attack_with_checked_answers(server: ServerProcess, table: AttackTable) -> None:
    """Send requests that take memory of every kind, each with an image and a schema of its own.

    Args:
        server: A fresh server.
        table: Gets a row.
    """
    await _add_answers(server, table, CHECKED_ANSWERS, [build_checked_request(seed) for seed in range(PARALLEL)])


async def _add_answers(server: ServerProcess, table: AttackTable, name: str, bodies: Sequence[bytes]) -> None:
    if not table.is_selected(name):
        return
    with measure_cost(server) as cost:
        answers = await asyncio.gather(*(post(server.port, CHAT, body) for body in bodies))
    table.add(name, len(bodies), count_outcomes(answers), cost=cost)
