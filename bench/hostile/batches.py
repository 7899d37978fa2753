"""Uploads and batches: large files of every shape, and the faults of `bench.robustness.batch_faults`."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from typing import Any

import httpx

from bench.harness.server_process import ServerProcess
from bench.hostile.attack_table import NORMAL_LIMIT, AttackTable, count_outcomes, measure_cost
from bench.hostile.connections import NORMAL
from bench.robustness.batch_faults import CHECKS, ENDED, run_check

SIZE = 100_000_000  # bytes of a file
PARALLEL = 8
PART = 1 << 20
TIMEOUT = 300.0  # seconds
BOUNDARY = "x5bb3c4a1"
HEAD = (
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
    f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
).encode()
END = f"\r\n--{BOUNDARY}--\r\n".encode()
LINE = b'{"custom_id": "%d", "method": "POST", "url": "/v1/chat/completions", "body": %s}\n'
NUMBERS = b'{"a": [%s], "b": [%s], "c": [%s]}' % ((b",".join([b"0"] * 16_000),) * 3)  # close to the bounds of a body
LONG_ID_LINE = LINE.replace(b"%d", b"%d" + "\U0001f600".encode() * 500)


def stream_units(unit: bytes) -> Iterator[bytes]:
    """Yield `SIZE` bytes of repeated units."""
    part = unit * max(1, PART // len(unit))
    for _ in range(SIZE // len(part)):
        yield part


def number_lines(body: bytes, line: bytes = LINE) -> Iterator[bytes]:
    """Yield `SIZE` bytes of lines with different ids."""
    size = number = 0
    lines = max(1, PART // len(line + body))
    while size < SIZE:
        part = b"".join(line % (number + offset, body) for offset in range(lines))
        number += lines
        size += len(part)
        yield part


def build_one_line(start: bytes, unit: bytes, end: bytes) -> Iterator[bytes]:
    """Yield one line of `SIZE` bytes."""
    yield start
    yield from stream_units(unit)
    yield end


FILES: dict[str, tuple[Callable[[], Iterator[bytes]], str]] = {  # name -> content, and the expected end of its batch
    "partial boundaries": (lambda: stream_units(f"\r\n--{BOUNDARY}\r".encode()), "failed invalid_line"),
    "lines of 75 bytes": (lambda: number_lines(b"{}"), "failed too_many_lines"),
    "equal lines": (lambda: stream_units(LINE % (0, b"{}")), "failed duplicate_id"),
    "line breaks": (lambda: stream_units(b"\n"), "failed too_many_lines"),
    "lines of one brace": (lambda: stream_units(b"{\n"), "failed invalid_line"),
    "one line of text": (lambda: build_one_line(b'{"custom_id": "', b"x" * 1000, b'"}'), "failed request_too_large"),
    "one line of numbers": (lambda: build_one_line(b'{"body": [', b"0,", b"0]}"), "failed request_too_large"),
    "one line of spaces": (lambda: stream_units(b" "), "failed empty_file"),
}


def upload(client: httpx.Client, content: Iterator[bytes]) -> httpx.Response:
    """Upload a file whose content is sent in chunks."""

    def send() -> Iterator[bytes]:
        yield HEAD
        yield from content
        yield END

    headers = {"content-type": f"multipart/form-data; boundary={BOUNDARY}"}
    return client.post("/v1/files", content=send(), headers=headers)


def create_batch(client: httpx.Client, content: Iterator[bytes]) -> dict[str, Any]:
    """Upload a file and create its batch.

    Args:
        client: A client of the server.
        content: The content of the file.

    Returns:
        The batch, or the error of the upload.
    """
    response = upload(client, content)
    if response.status_code != 200:
        return {"status": f"{response.status_code} {response.json()['error']['code']}"}
    fields = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    batch: dict[str, Any] = client.post("/v1/batches", json=fields | {"input_file_id": response.json()["id"]}).json()
    return batch


def wait_for_end(client: httpx.Client, batch: dict[str, Any]) -> str:
    """Wait for the end of a batch and delete its file.

    Args:
        client: A client of the server.
        batch: The batch, or the error of its upload.

    Returns:
        The last status of the batch and the code of its first error.

    Raises:
        TimeoutError: The batch does not end.
    """
    if "id" not in batch:
        return str(batch["status"])
    deadline = time.monotonic() + TIMEOUT
    while batch["status"] not in ENDED:
        if time.monotonic() > deadline:
            raise TimeoutError("the batch does not end")
        time.sleep(0.1)
        batch = client.get(f"/v1/batches/{batch['id']}").json()
    client.delete(f"/v1/files/{batch['input_file_id']}")
    errors = (batch.get("errors") or {}).get("data") or [{}]
    return f"{batch['status']} {errors[0].get('code') or ''}".strip()


def run_file(client: httpx.Client, content: Iterator[bytes]) -> str:
    """Upload a file, run it as a batch and delete it. Return the last status and the code of the first error."""
    return wait_for_end(client, create_batch(client, content))


def attack_with_files(server: ServerProcess, table: AttackTable) -> None:
    """Run each file as a batch, alone and eight at once.

    Args:
        server: The server.
        table: Gets a row for each.
    """
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client, ThreadPoolExecutor(PARALLEL) as pool:
        for base_name, (build, expected) in FILES.items():
            name = f"file of 100 MB: {base_name}"
            if not table.is_selected(name):
                continue
            for count in (1, PARALLEL):
                with measure_cost(server) as cost:
                    outcomes = list(pool.map(lambda _, build=build: run_file(client, build()), range(count)))
                passed = set(outcomes) == {expected}
                table.add(name, count, count_outcomes(outcomes), cost=cost, limit=expected, passed=passed)


def attack_with_lines(server: ServerProcess, table: AttackTable) -> None:
    """Run a batch of large lines, which get errors because their texts are longer than the context.

    Args:
        server: The server.
        table: Gets a row.
    """
    name = "batch of 5 lines of 3.9 MB"
    if not table.is_selected(name):
        return
    text = json.dumps(NORMAL | {"messages": [{"role": "user", "content": "word " * 780_000}]}).encode()
    with httpx.Client(base_url=server.url, timeout=TIMEOUT) as client:
        with measure_cost(server) as cost:
            outcome = run_file(client, (LINE % (number, text) for number in range(5)))
        table.add(name, 5, outcome, cost=cost, limit="completed", passed=outcome == "completed")


KEY_FILES: dict[str, tuple[Callable[[], Iterator[bytes]], str]] = {  # the batches that end by "cancelled" are cancelled
    "numbers": (lambda: number_lines(NUMBERS), "cancelled"),
    "long ids": (lambda: chain(number_lines(b"{}", LONG_ID_LINE), (b"{",)), "failed invalid_line"),
}


def attack_with_keys(table: AttackTable, engine: str) -> None:
    """Validate a slow file of each of eight keys, while another key runs a batch of one line.

    Args:
        table: Gets a row for each kind of file.
        engine: The engine of the server.
    """
    keys = [f"key-{number}" for number in range(PARALLEL + 1)]
    line = LINE % (0, json.dumps(NORMAL).encode())
    for base_name, (build, expected) in KEY_FILES.items():
        name = f"files of 100 MB of {base_name}, each of another key"
        if not table.is_selected(name):
            continue
        with (
            ServerProcess("--api-keys", ",".join(keys), engine=engine) as server,
            ThreadPoolExecutor(PARALLEL) as pool,
            ExitStack() as resources,
        ):
            *attackers, victim = [
                resources.enter_context(
                    httpx.Client(base_url=server.url, timeout=TIMEOUT, headers={"authorization": f"Bearer {key}"})
                )
                for key in keys
            ]
            with measure_cost(server) as cost:
                batches = list(pool.map(lambda client, build=build: create_batch(client, build()), attackers))
                started_at = time.monotonic()
                outcome = run_file(victim, iter([line]))
                seconds = time.monotonic() - started_at
                for client, batch in zip(attackers, batches, strict=True):
                    if expected == "cancelled":
                        client.post(f"/v1/batches/{batch['id']}/cancel")
                ends = list(pool.map(wait_for_end, attackers, batches))
        passed = outcome == "completed" and set(ends) == {expected} and seconds <= NORMAL_LIMIT
        text = f"batch of one line: {outcome} after {seconds:.1f} s; {count_outcomes(ends)}"
        limit = f"batch of one line {NORMAL_LIMIT:.0f} s; {expected}"
        table.add(name, PARALLEL, text, cost=cost, limit=limit, passed=passed)


def attack_with_faults(table: AttackTable) -> None:
    """Run the checks of the batch store on servers of their own, with the transformers engine.

    Args:
        table: Gets a row for each.
    """
    for base_name, (check, expected) in CHECKS.items():
        name = f"batch store: {base_name}"
        if table.is_selected(name):
            outcome = run_check(check)
            table.add(name, 1, outcome, limit="no answer lost", passed=bool(re.fullmatch(expected, outcome)))
