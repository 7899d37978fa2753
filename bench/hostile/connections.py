"""Connections that send part of a request and then nothing, or almost nothing, while another client needs an answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import dataclass

from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import NORMAL_LIMIT, AttackTable, measure_cost
from bench.hostile.bodies import CHAT, post

HEADER_TIMEOUT = BODY_TIMEOUT = 10  # seconds; the attacked server has these settings
HOLD_TIMEOUT = 6 * BODY_TIMEOUT  # seconds, after which the attack gives up
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\n%s"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
HEALTH_AND_CLOSE = HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
NORMAL = {"model": "onlyseen-tiny", "messages": [{"role": "user", "content": "Hello."}], "max_tokens": 1}
NORMAL_OF_64_TOKENS = NORMAL | {"max_tokens": 64, "ignore_eos": True}
ATTACKER_KEY, VICTIM_KEY = "attacker", "victim"
API_KEYS = f"{ATTACKER_KEY},{VICTIM_KEY}"  # of the attacked servers


@dataclass(frozen=True)
class ConnectionAttack:
    """One attack.

    Attributes:
        count: Number of connections.
        content: Bytes that each sends at once.
        drip: Bytes that each sends afterwards, one a second.
    """

    count: int
    content: bytes
    drip: bytes = b""


def build_attacks(key: str | None) -> dict[str, ConnectionAttack]:
    """Return the attacks by name.

    Args:
        key: API key of the attacker, or None for a server without keys.
    """
    authorization = b"Authorization: Bearer %s\r\n" % key.encode() if key else b""
    head = HEAD % (CHAT.encode(), b"application/json", authorization)
    upload = HEAD % (b"/v1/files", b"multipart/form-data; boundary=b", authorization)
    body = json.dumps(NORMAL_OF_64_TOKENS).encode()
    attacks = {
        "silent connections": ConnectionAttack(300, b""),
        "half headers": ConnectionAttack(1000, head[:60]),
        "headers of 60 kB at once": ConnectionAttack(300, head + b"X-Long: " + b"a" * 60_000 + b"\r\n\r\n"),
        "headers, one byte a second": ConnectionAttack(300, head, b"X-Drip: " + b"a" * 60),
        "bodies of 100 bytes": ConnectionAttack(300, head + b"Content-Length: 5000\r\n\r\n" + b" " * 100),
        "bodies, one byte a second": ConnectionAttack(300, head + b"Content-Length: 5000\r\n\r\n", b" " * 60),
        "bodies of 19 MB": ConnectionAttack(60, head + b'Content-Length: 19500000\r\n\r\n{"a": "' + b"A" * 19_000_000),
        "chunks of one byte": ConnectionAttack(
            4, head + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\n \r\n" * 500_000
        ),
        "20 requests for /health each": ConnectionAttack(300, HEALTH * 19 + HEALTH_AND_CLOSE),
        "idle uploads of 512 MB": ConnectionAttack(8, upload + b"Content-Length: 512000000\r\n\r\n"),
    }
    if key:
        request = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        attacks["requests of one key, 64 tokens each"] = ConnectionAttack(300, request)
    return attacks


async def hold(port: int, attack: ConnectionAttack) -> str:
    """Send bytes and wait for the server to end the connection.

    Args:
        port: Port of the server.
        attack: The attack.

    Returns:
        The status of the answer, or "closed".
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        for start in range(0, len(attack.content), 1 << 16):
            writer.write(attack.content[start : start + (1 << 16)])
            await writer.drain()
        for byte in attack.drip:
            await asyncio.sleep(1)
            writer.write(bytes([byte]))
            await writer.drain()

    sender = asyncio.create_task(send())
    try:
        response = await reader.read()
        return response.split(b" ", 2)[1].decode() if response else "closed"
    except ConnectionError:
        return "closed"
    finally:
        sender.cancel()
        await asyncio.gather(sender, return_exceptions=True)
        writer.close()


async def attack_with_connections(server: ServerProcess, table: AttackTable, *, has_keys: bool = False) -> None:
    """Hold unfinished requests open, and send a normal request meanwhile.

    Args:
        server: The server.
        table: Gets a row for each attack.
        has_keys: Whether the server has the `API_KEYS`.
    """
    normal = json.dumps(NORMAL).encode()
    for base_name, attack in build_attacks(ATTACKER_KEY if has_keys else None).items():
        name = f"{base_name}, with keys" if has_keys else base_name
        if not table.is_selected(name):
            continue
        with measure_cost(server) as cost:
            started_at = time.perf_counter()
            tasks = [asyncio.create_task(hold(server.port, attack)) for _ in range(attack.count)]
            await asyncio.sleep(2)
            before_normal = time.perf_counter()
            answer = await post(server.port, CHAT, normal, VICTIM_KEY if has_keys else None)
            normal_seconds = time.perf_counter() - before_normal
            done, pending = await asyncio.wait(tasks, timeout=HOLD_TIMEOUT)
            seconds = time.perf_counter() - started_at
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        ends = Counter(task.result() for task in done)
        if pending:
            ends["still open"] = len(pending)
        listed = ", ".join(f"{end} ({number})" for end, number in ends.items())
        table.add(
            name,
            attack.count,
            f"normal request: {answer} in {normal_seconds:.2f} s; ended after {seconds:.0f} s: {listed}",
            cost=cost,
            limit=f"normal request {NORMAL_LIMIT:.0f} s, all ended",
            passed=answer == "200" and normal_seconds <= NORMAL_LIMIT and not pending,
        )
