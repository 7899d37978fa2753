"""Large bodies of every shape on every JSON route, alone and eight at once, and small bodies that cost much."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable

from bench.harness.models import EMBEDDED
from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import AttackTable, count_outcomes, measure_cost

SIZE = 18_000_000  # bytes; the limit of the server is 20 MB
CHAT, RESPONSES, TOKENIZE, BATCHES = "/v1/chat/completions", "/v1/responses", "/tokenize", "/v1/batches"
CHAT_START = b'{"model": "onlyseen-tiny", "messages": [{"role": "user", "content": '
RESPONSES_START = b'{"model": "onlyseen-tiny", "input": [{"role": "user", "content": '
PART = b'{"type": "text", "text": "a"},'
IMAGE_START = b'[{"type": "image_url", "image_url": {"url": "data:image/png;base64,'
PARALLEL = 8
SCENES = EMBEDDED / "scenes" / "images"
IMAGE_URL = "data:image/png;base64," + base64.b64encode(min(SCENES.glob("*.png")).read_bytes()).decode()
IMAGE = {"type": "image_url", "image_url": {"url": IMAGE_URL}}
# 64 of them are four KV caches
LONG_ANSWERS = {"model": "onlyseen-tiny", "n": 8, "max_tokens": 900, "ignore_eos": True}
LARGE_ANSWERS = {
    "chat: 8 long answers with 20 log-probabilities per token": (
        CHAT,
        LONG_ANSWERS | {"messages": [{"role": "user", "content": "a"}], "logprobs": True, "top_logprobs": 20},
    ),
    "chat: 8 long answers of four rows each": (
        CHAT,
        LONG_ANSWERS
        | {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, IMAGE]}],
            "decoding": {"strategy": "vcd+icd+m3id"},
            "max_tokens": 400,
        },
    ),
    "completions: 8 long answers with 5 log-probabilities per token": (
        "/v1/completions",
        LONG_ANSWERS | {"prompt": "a", "logprobs": 5, "max_tokens": 500},
    ),
}
SHORT_CHAT = {"model": "onlyseen-tiny", "messages": [{"role": "user", "content": "a"}]}
LETTERS = [chr(code) for codes in (range(35, 92), range(0xA1, 0x17F), range(0x4E00, 0x9FFF, 97)) for code in codes]


def intersect_patterns(count: int) -> dict[str, object]:
    """Return a schema of texts that contain `count` words. Each word triples the time and the memory to compile it."""
    return {"allOf": [{"type": "string", "pattern": f".*a{number}.*"} for number in range(count)]}


def build_chat_with_schema(schema: dict[str, object], **fields: object) -> tuple[str, dict[str, object]]:
    """Return the route and the body of a chat request whose answer follows a schema."""
    json_schema = {"name": "a", "schema": schema}
    return CHAT, SHORT_CHAT | {"response_format": {"type": "json_schema", "json_schema": json_schema}} | fields


def build_many_states(pattern: str) -> tuple[str, dict[str, object]]:
    """Return the route and the body of a request whose answers reach many states of the pattern's automaton."""
    schema: dict[str, object] = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": pattern}, "z": {"enum": LETTERS}},
        "required": ["a"],
        "additionalProperties": False,
    }
    return build_chat_with_schema(schema, n=4, max_tokens=900, temperature=2.0)


SCHEMAS = {
    "chat: schema of 15 patterns": build_chat_with_schema(intersect_patterns(15)),
    "chat: schema of 40 patterns": build_chat_with_schema(intersect_patterns(40)),
    "responses: schema of 40 patterns": (
        RESPONSES,
        {
            "model": "onlyseen-tiny",
            "input": "a",
            "text": {"format": {"type": "json_schema", "name": "a", "schema": intersect_patterns(40)}},
        },
    ),
    "chat: schema of 999 URIs, 8 choices": build_chat_with_schema(
        {"type": "object", "properties": {f"p{number}": {"type": "string", "format": "uri"} for number in range(999)}},
        n=8,
        max_tokens=1,
    ),
    "chat: schema of long lists, 8 choices": build_chat_with_schema(
        {
            "type": "object",
            "properties": {
                f"p{number}": {
                    "type": "array",
                    "items": {"type": "integer"},
                    "minItems": 5000,
                    "maxItems": 9000 + number,
                }
                for number in range(7)
            },
            "required": [f"p{number}" for number in range(7)],
        },
        n=8,
        max_tokens=100,
    ),
    # Each letter after an "a" doubles the states of the automaton, and each letter of the enum widens its table. All
    # choices of eight such requests run at once.
    "chat: schema of many states, 4 choices": build_many_states("^[^b]*a[^b]{60}$"),
    "chat: schema of 100,000 states, 4 choices": build_many_states("^([^b]{1,30}|[^b]*a[^b]{9000})$"),
}
UPLOAD_TYPE = "multipart/form-data; boundary=b; charset=punycode"
UPLOAD = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n%s\r\n--b--\r\n'


def fill_body(unit: bytes, start: bytes = b"", end: bytes = b"") -> bytes:
    """Return `start`, then `unit` as often as `SIZE` allows, then `end`."""
    return start + unit * ((SIZE - len(start) - len(end)) // len(unit)) + end


def number_keys(start: bytes, end: bytes) -> bytes:
    """Return an object with different keys, of `SIZE` bytes."""
    return start + b",".join(b'"%07d":"a"' % key for key in range(SIZE // 14)) + end


def build_bodies() -> dict[str, tuple[str, Callable[[], bytes]]]:
    """Return the route and the builder of each body, by name."""
    return {
        "chat: list of numbers": (CHAT, lambda: fill_body(b"0,", CHAT_START + b"[", b"0]}]}")),
        "chat: list of empty objects": (CHAT, lambda: fill_body(b"{},", CHAT_START + b"[", b"{}]}]}")),
        "chat: text parts": (CHAT, lambda: fill_body(PART, CHAT_START + b"[", PART[:-1] + b"]}]}")),
        "chat: nested lists": (CHAT, lambda: fill_body(b"[", CHAT_START)),
        "chat: nested objects": (CHAT, lambda: fill_body(b'{"a":')),
        "chat: unknown keys": (CHAT, lambda: number_keys(b"{", b"}")),
        "chat: one long key": (CHAT, lambda: fill_body(b"x", b'{"', b'": 1}')),
        "chat: one long number": (CHAT, lambda: fill_body(b"1", b'{"seed": ', b"}")),
        "chat: commas": (CHAT, lambda: fill_body(b",", b"[")),
        "chat: colons": (CHAT, lambda: fill_body(b":")),
        "chat: spaces": (CHAT, lambda: fill_body(b" ", b"{", b"}")),
        "chat: one text": (CHAT, lambda: fill_body(b"word ", CHAT_START + b'"', b'"}]}')),
        "chat: one text of wide characters": (
            CHAT,
            lambda: fill_body("é".encode(), CHAT_START + b'"', '🙂"}]}'.encode()),
        ),
        "chat: one text of escapes": (CHAT, lambda: fill_body(b"\\u0041", CHAT_START + b'"', b'"}]}')),
        "chat: one image of base64": (CHAT, lambda: fill_body(b"AAAA", CHAT_START + IMAGE_START, b'"}}]}]}')),
        "chat: base64 with escapes": (CHAT, lambda: fill_body(b"AA\\/A", CHAT_START + IMAGE_START, b'"}}]}]}')),
        "chat: strategy parameters": (
            CHAT,
            lambda: fill_body(b"0,", CHAT_START + b'"a"}], "decoding": {"vcd": {"alpha": [', b"0]}}}"),
        ),
        "chat: one long parameter": (
            CHAT,
            lambda: fill_body(b"x", CHAT_START + b'"a"}], "decoding": {"strategy": "vcd", "vcd": {"alpha": "', b'"}}}'),
        ),
        "chat: one long name of a strategy": (
            CHAT,
            lambda: fill_body(b"vcd+", CHAT_START + b'"a"}], "decoding": {"strategy": "', b'vcd"}}'),
        ),
        "chat: schema": (
            CHAT,
            lambda: number_keys(
                CHAT_START + b'"a"}], "response_format": {"type": "json_schema", "json_schema": {"schema": {', b"}}}}"
            ),
        ),
        "responses: list of numbers": (RESPONSES, lambda: fill_body(b"0,", RESPONSES_START + b"[", b"0]}]}")),
        "responses: metadata": (RESPONSES, lambda: number_keys(b'{"metadata": {', b"}}")),
        "responses: one text": (
            RESPONSES,
            lambda: fill_body(b"word ", b'{"model": "onlyseen-tiny", "input": "', b'"}'),
        ),
        "completions: one text": (
            "/v1/completions",
            lambda: fill_body(b"word ", b'{"model": "onlyseen-tiny", "prompt": "', b'"}'),
        ),
        "completions: list of numbers": ("/v1/completions", lambda: fill_body(b"0,", b'{"prompt": [', b"0]}")),
        "tokenize: list of numbers": (TOKENIZE, lambda: fill_body(b"0,", CHAT_START + b"[", b"0]}]}")),
        "tokenize: one text": (TOKENIZE, lambda: fill_body(b"word ", b'{"model": "onlyseen-tiny", "prompt": "', b'"}')),
        "batches: metadata": (BATCHES, lambda: number_keys(b'{"metadata": {', b"}}")),
    }


async def post(
    port: int, path: str, content: bytes, key: str | None = None, content_type: str = "application/json"
) -> str:
    """Post a body.

    Args:
        port: Port of the server.
        path: Path of the route.
        content: The body.
        key: An API key.
        content_type: Type of the body.

    Returns:
        The status and the error code, or "closed".
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {content_type}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {key}\r\n" if key else ""
    try:
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content))
        for start in range(0, len(content), 1 << 16):
            writer.write(content[start : start + (1 << 16)])
            await writer.drain()
    except ConnectionError:
        pass  # the server has answered and closed
    try:
        response = await reader.read()
    except ConnectionError:
        return "closed"
    finally:
        writer.close()
    if not response:
        return "closed"
    status = response.split(b" ", 2)[1].decode()
    error = json.loads(response.partition(b"\r\n\r\n")[2] or b"{}").get("error") or {}
    return f"{status} {error.get('code') or ''}".strip()


async def attack_with_bodies(server: ServerProcess, table: AttackTable) -> None:
    """Send each body alone, and then eight of it at once.

    Args:
        server: The server.
        table: Gets a row for each.
    """
    for name, (path, build) in build_bodies().items():
        if not table.is_selected(name):
            continue
        content = build()
        for count in (1, PARALLEL):
            with measure_cost(server) as cost:
                answers = await asyncio.gather(*(post(server.port, path, content) for _ in range(count)))
            table.add(name, count, count_outcomes(answers), cost=cost)
    await attack_with_small_bodies(server, table)


async def attack_with_small_bodies(server: ServerProcess, table: AttackTable) -> None:
    """Request large answers and costly schemas, and upload a field whose charset is slow to decode.

    The large answers also fill the KV cache.

    Each is sent alone, and then eight at once.

    Args:
        server: The server.
        table: Gets a row for each.
    """
    attacks = {
        name: (path, json.dumps(body).encode(), "application/json")
        for name, (path, body) in (LARGE_ANSWERS | SCHEMAS).items()
    }
    field = b"b" * 520_000 + b"-" + b"a" * 520_000
    attacks["upload: field in punycode"] = ("/v1/files", UPLOAD % field, UPLOAD_TYPE)
    # Two schemas at once start the processes that check schemas.
    small_schema = json.dumps(SHORT_CHAT | {"response_format": {"type": "json_object"}, "max_tokens": 1}).encode()
    await asyncio.gather(*(post(server.port, CHAT, small_schema) for _ in range(2)))
    for name, (path, content, content_type) in attacks.items():
        if not table.is_selected(name):
            continue
        for count in (1, PARALLEL):
            with measure_cost(server) as cost:
                posts = (post(server.port, path, content, content_type=content_type) for _ in range(count))
                answers = await asyncio.gather(*posts)
            table.add(name, count, count_outcomes(answers), cost=cost)
