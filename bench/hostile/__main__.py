"""Attacks on servers with the embedded model that this program starts.

    python -m bench.hostile
    python -m bench.hostile --engine vllm
    python -m bench.hostile --only bodies --names "list of numbers"
    python -m bench.hostile --only images --write

The table has the slowest /health during each attack, the memory at its peak and three seconds later, and the limits.
The exit code is 1 if one of them is exceeded. Two faults of the batch store need a small file system, which only root
can mount.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

from bench.harness.server_process import ENGINE_FLAGS, ServerProcess
from bench.hostile.addresses import ALLOWED_HOST, attack_with_resolved_addresses, attack_with_urls
from bench.hostile.attack_table import AttackTable
from bench.hostile.batches import attack_with_faults, attack_with_files, attack_with_keys, attack_with_lines
from bench.hostile.bodies import CHAT, attack_with_bodies, post
from bench.hostile.cache_timing import attack_caches_of_keys
from bench.hostile.connections import (
    API_KEYS,
    BODY_TIMEOUT,
    HEADER_TIMEOUT,
    NORMAL,
    VICTIM_KEY,
    attack_with_connections,
)
from bench.hostile.images import attack_with_images
from bench.hostile.responses import attack_with_answers, attack_with_checked_answers, attack_with_documents

KINDS = ("bodies", "responses", "connections", "images", "addresses", "keys", "batches")


async def run_on_server(
    attack: Callable[[ServerProcess], Awaitable[None]], engine: str, *flags: str, key: str | None = None
) -> None:
    """Start a server, warm it up and attack it.

    Args:
        attack: The attack.
        engine: The engine of the server.
        flags: Command-line flags of the server.
        key: An API key of the server.
    """
    with ServerProcess(*flags, engine=engine) as server:
        for _ in range(3):
            await post(server.port, CHAT, json.dumps(NORMAL).encode(), key)
        await attack(server)


async def run_on_servers(kind: str, table: AttackTable, engine: str) -> None:
    """Run the attacks of a kind that is measured on running servers.

    Args:
        kind: The kind.
        table: Gets the rows.
        engine: The engine of the servers.
    """
    timeouts = ("--header-timeout", str(HEADER_TIMEOUT), "--body-timeout", str(BODY_TIMEOUT))
    match kind:
        case "bodies":
            await run_on_server(lambda server: attack_with_bodies(server, table), engine)
        case "responses":
            await run_on_server(lambda server: attack_with_documents(server, table), engine)
            await run_on_server(lambda server: attack_with_answers(server, table), engine)
            await run_on_server(lambda server: attack_with_checked_answers(server, table), engine)
        case "images":
            await run_on_server(lambda server: attack_with_images(server, table), engine)
        case "addresses":
            await run_on_server(lambda server: attack_with_urls(server, table), engine, "--image-hosts", ALLOWED_HOST)
        case "connections":
            await run_on_server(lambda server: attack_with_connections(server, table), engine, *timeouts)
            await run_on_server(
                lambda server: attack_with_connections(server, table, has_keys=True),
                engine,
                *timeouts,
                "--api-keys",
                API_KEYS,
                key=VICTIM_KEY,
            )


def run_kind(kind: str, table: AttackTable, engine: str) -> None:
    """Run all attacks of a kind.

    Args:
        kind: The kind.
        table: Gets the rows.
        engine: The engine of the servers.
    """
    asyncio.run(run_on_servers(kind, table, engine))
    match kind:
        case "addresses":
            attack_with_resolved_addresses(table)
        case "keys":
            attack_caches_of_keys(table, engine)
        case "batches":
            with ServerProcess(engine=engine) as server:
                attack_with_files(server, table)
                attack_with_lines(server, table)
            attack_with_keys(table, engine)
            attack_with_faults(table)


def store_kind(kind: str, table: AttackTable, engine: str) -> None:
    """Store the rows of a kind beside those of the others, and write the tables of all kinds.

    Args:
        kind: The kind.
        table: Its rows.
        engine: The engine of the servers.
    """
    # It imports torch, which the attacks do not need.
    from bench.harness.docs_page import DOCS, RESULTS, describe_machine, describe_origin, fill_section

    name = "hostile" if engine == "hf" else f"hostile_{engine}"
    file = RESULTS / f"{name}.json"
    stored = json.loads(file.read_text()) if file.exists() else {}
    stored[kind] = {**describe_machine(), "attacks": table.to_figures(), "table": table.to_markdown()}
    file.write_text(json.dumps(stored, indent=1) + "\n")
    parts = [
        f"{each.capitalize()}. {describe_origin(stored[each])}\n\n{stored[each]['table']}"
        for each in KINDS
        if each in stored
    ]
    fill_section(DOCS / "benchmarks.md", name, "\n\n".join(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINE_FLAGS, default="hf", help="engine of the attacked servers")
    parser.add_argument("--only", choices=KINDS, help="kind of attacks to run")
    parser.add_argument("--names", default="", help="part of the names of the attacks to run")
    parser.add_argument(
        "--write", action="store_true", help="write each kind into docs/benchmarks.md and bench/results/"
    )
    options = parser.parse_args()
    if options.write and options.names:
        parser.error("--write stores whole kinds, so it does not combine with --names")
    tables = {kind: AttackTable(options.names) for kind in ([options.only] if options.only else KINDS)}
    for kind, table in tables.items():
        run_kind(kind, table, options.engine)
        if options.write:
            store_kind(kind, table, options.engine)
    rows = [row for table in tables.values() for row in table.rows]
    if failed := [row.name for row in rows if not row.passed]:
        sys.exit(f"{len(failed)} of {len(rows)} attacks exceed a limit: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
