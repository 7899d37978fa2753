"""Compiles JSON schemas into grammars, with bounds on time and memory, and with turns for API keys.

A schema is checked in another process before the engine compiles it: see `decoding/text/grammar_check.py`. Checks and
compilations take turns, so that the schemas of one API key do not delay those of others.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import structlog
from anyio.to_thread import run_sync

from decoding.engine import Engine
from decoding.errors import BadRequest, Overloaded
from decoding.sampling_params import Grammar
from decoding.text.grammar import CHECK_PROGRAM, InvalidSchema, build_grammar
from server.fair_queue import FairQueue
from server.threads import wait_to_end

if TYPE_CHECKING:
    from decoding.text.grammar_check import GrammarCheckResult

log = structlog.get_logger("onlyseen.server")

CHECK_SECONDS = 4.0  # of a core that the check of a schema may take
CHECK_MEGABYTES = 128  # that a process may take for the check of a schema
TERMINATION_TIMEOUT = 2.0  # seconds that a process has to end its check, before both are killed
STALL_TIMEOUT = 60.0  # seconds after which a check without processor time is ended
TURNS = 2  # schemas that are checked or compiled at a time
TURN_TIMEOUT = 30.0  # seconds that a request waits for its turn
GRAMMAR_BYTES = 1_000_000  # of a grammar that the check does not measure: the engine's tokenizer has other tokens
MAX_CHECKED = 1024  # schemas whose results are kept
TOO_MANY = "Too many schemas are compiled at once; try again in a moment."


class GrammarCheckFailed(Exception):
    """The process has ended, or its check has stalled. This is not the fault of the schema."""


class GrammarCheckProcess:
    """A process that checks grammars, one at a time. It starts with the first one."""

    def __init__(self) -> None:
        self._process: Process | None = None

    async def check(self, text: str) -> GrammarCheckResult:
        """Check a grammar. If this is cancelled, the process ends.

        Args:
            text: The grammar.

        Returns:
            The result.

        Raises:
            GrammarCheckFailed: The process ended without a result, or stalled.
        """
        result: GrammarCheckResult | None = None
        try:
            async with asyncio.timeout(STALL_TIMEOUT):
                if self._process is None or self._process.returncode is not None:
                    self._process = await start_process()
                assert self._process.stdin is not None
                assert self._process.stdout is not None
                self._process.stdin.write(json.dumps(text).encode() + b"\n")
                line = await self._process.stdout.readline()
            result = json.loads(line)
        except (OSError, ValueError) as error:
            raise GrammarCheckFailed from error
        finally:
            if result is None:
                await wait_to_end(self.close())  # a process that nobody waits for would stay a zombie
        return result

    async def close(self) -> None:
        """End the process, with a check that runs in it."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            with suppress(ProcessLookupError, TimeoutError):
                process.terminate()
                async with asyncio.timeout(TERMINATION_TIMEOUT):
                    await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def start_process() -> Process:
    """Start the program that checks grammars, in a process group of its own."""
    command = [sys.executable, "-P", str(CHECK_PROGRAM), str(CHECK_SECONDS), str(CHECK_MEGABYTES)]
    return await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, start_new_session=True)


@dataclass
class PendingCheck:
    """A check that waits or runs.

    Attributes:
        task: The check.
        num_requests: Requests that wait for it.
    """

    task: asyncio.Task[GrammarCheckResult | None]
    num_requests: int = 0


class SchemaCompiler:
    """Checks schemas and compiles them in the engine."""

    def __init__(self, max_bytes: int, max_owner_bytes: int | None = None, max_owner_turns: int | None = None) -> None:
        """Create a compiler.

        Args:
            max_bytes: Bytes of the compiled schemas of all requests.
            max_owner_bytes: Bytes for one API key; None: no bound of its own.
            max_owner_turns: Turns of one API key; None: no bound of its own.
        """
        self._build_limiter = anyio.CapacityLimiter(TURNS)
        self._turns = FairQueue(TURNS, max_owner_turns)
        self._memory = FairQueue(max_bytes, max_owner_bytes)
        self._idle_processes = [GrammarCheckProcess() for _ in range(TURNS)]
        self._processes = tuple(self._idle_processes)
        self._pending_checks: dict[tuple[str, str, bytes], PendingCheck] = {}
        self._sizes: OrderedDict[tuple[str, bytes], int] = OrderedDict()  # bytes of checked schemas, newest last

    async def compile(
        self,
        schema: Mapping[str, Any] | Grammar,
        param: str,
        engine: Engine,
        *,
        owner: str,
        cache_salt: str | None,
        resources: ExitStack,
    ) -> Grammar:
        """Check a schema and compile it in the engine.

        Args:
            schema: The schema, or a grammar that is no schema.
            param: Request field that an error names.
            engine: The engine.
            owner: Owner of the request.
            cache_salt: Salt of the request's caches. The results of checks are kept under it.
            resources: Releases the memory for the grammar.

        Returns:
            The grammar. All requests that hold it share its compiled form.

        Raises:
            BadRequest: The schema is invalid or takes too long.
            InvalidSchema: It cannot be enforced, or takes too much memory.
            Overloaded: Too many others wait.
        """
        if isinstance(schema, Grammar):
            grammar = schema
        else:
            grammar = await run_sync(build_grammar, schema, param, limiter=self._build_limiter)
        key = cache_salt or "", hashlib.sha256(grammar.text.encode()).digest()
        if key not in self._sizes:
            check = await self._share_check(grammar, owner, key)
            if check is None:
                raise Overloaded(TOO_MANY, code="too_many_schemas")
            if check["timed_out"]:
                raise BadRequest("The schema takes too long to compile.", param=param, code="invalid_schema")
            if check["reason"]:
                raise InvalidSchema(check["reason"], param)
            self._sizes[key] = GRAMMAR_BYTES + check["num_bytes"]
        self._sizes.move_to_end(key)
        size = self._sizes[key]
        if len(self._sizes) > MAX_CHECKED:
            self._sizes.popitem(last=False)
        held = await self._memory.acquire(owner, size)
        resources.callback(self._memory.release, owner, held)
        async with self._hold_turn(owner):
            await wait_to_end(engine.compile_grammar(grammar))
        return grammar

    async def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            await process.close()

    @asynccontextmanager
    async def _hold_turn(self, owner: str) -> AsyncGenerator[None, None]:
        """Wait for a turn, and hold it for as long as the context lasts.

        Yields:
            Nothing.

        Raises:
            Overloaded: The wait takes too long.
        """
        try:
            async with asyncio.timeout(TURN_TIMEOUT):
                held = await self._turns.acquire(owner, 1)
        except TimeoutError:
            raise Overloaded(TOO_MANY, code="too_many_schemas") from None
        try:
            yield
        finally:
            self._turns.release(owner, held)

    async def _share_check(self, grammar: Grammar, owner: str, key: tuple[str, bytes]) -> GrammarCheckResult | None:
        """Check a grammar, once for all requests of an owner that wait for it. The last one that leaves ends the check.

        A request that joins a waiting check also joins its deadline.

        Args:
            grammar: The grammar.
            owner: Owner of the request, in whose turn the check runs.
            key: Key of the result.

        Returns:
            The result of `_check`.
        """
        pending = self._pending_checks.get((owner, *key))
        if pending is None:
            pending = PendingCheck(asyncio.create_task(self._check(grammar, owner)))
            self._pending_checks[owner, *key] = pending
        pending.num_requests += 1
        try:
            await asyncio.wait([pending.task])
        finally:
            pending.num_requests -= 1
            if not pending.num_requests:
                del self._pending_checks[owner, *key]
                pending.task.cancel()
                await asyncio.wait([pending.task])
        return pending.task.result()

    async def _check(self, grammar: Grammar, owner: str) -> GrammarCheckResult | None:
        """Check a grammar in a turn.

        Returns:
            The result; None if there is no turn in time, or no process can check it.
        """
        try:
            async with self._hold_turn(owner):
                process = self._idle_processes.pop()
                try:
                    return await process.check(grammar.text)
                finally:
                    self._idle_processes.append(process)
        except GrammarCheckFailed as error:
            log.error("schema_check_failed", exc_info=error)
        except Overloaded:
            pass
        return None
