"""The one thread that runs the model: takes jobs in, keeps the batch going, hands tokens out."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import structlog
import torch

from decoding.answer import Token
from decoding.errors import EngineFailed, OnlySeenError
from decoding.hf_engine.batch import Batch, Said
from decoding.hf_engine.grouping import PREFILL_TOKENS
from decoding.hf_engine.model import Model
from decoding.hf_engine.prefill import prefill
from decoding.hf_engine.prefixes import Prefixes
from decoding.hf_engine.request import Request
from decoding.waiting import Place

log = structlog.get_logger(__name__)
PATIENCE = 1.0  # seconds without a job before memory is given back: the next job has to ask for it again


@dataclass(eq=False, slots=True)
class Ticket:
    """The event loop's end of a request: what the worker says comes out of `said`."""

    request: Request
    place: Place
    loop: asyncio.AbstractEventLoop
    said: asyncio.Queue[Token | OnlySeenError] = field(default_factory=asyncio.Queue)
    cancelled: bool = False


@dataclass(eq=False, slots=True)
class Errand:
    """Something else that needs the model: a probe."""

    work: Callable[[], Any]
    done: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop


class Worker:
    """`submit`, `errand` and `close` are called by others, everything else happens in the thread."""

    def __init__(self, model: Model, max_rows: int, prefix_cache_bytes: int) -> None:
        self.model = model
        self.max_rows = max_rows
        self.batch = Batch(model)
        self.prefixes = Prefixes(model, prefix_cache_bytes)
        self._inbox: queue.SimpleQueue[Ticket | Errand | None] = queue.SimpleQueue()
        self._door = threading.Lock()  # nothing comes in once it has been closed
        self._closed = False
        self._closing = False
        self._waiting: deque[Ticket] = deque()
        self._errands: deque[Errand] = deque()
        self._tickets: dict[int, Ticket] = {}  # by id of the request: those that run
        self._thread = threading.Thread(target=self._run, name="onlyseen-model", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, ticket: Ticket) -> None:
        """Raises:
        EngineFailed: the engine has stopped.
        """
        self._put(ticket)

    async def errand(self, work: Callable[[], Any]) -> Any:
        """Raises:
        EngineFailed: the engine has stopped, or the work failed.
        """
        loop = asyncio.get_running_loop()
        errand = Errand(work, loop.create_future(), loop)
        self._put(errand)
        return await errand.done

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()

    def _put(self, job: Ticket | Errand) -> None:
        with self._door:
            if self._closed:
                raise stopped()
            self._inbox.put(job)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._take_in()
                    self._drop_cancelled()
                    self._turn()
        finally:
            self._stop()

    def _turn(self) -> None:
        try:
            self._do_errand()
            self._admit()
            if self.batch.rows:
                self._hand_out(self.batch.step())
        except Exception as error:
            log.exception("the step failed; its requests are given up")
            self.batch = Batch(self.model)  # the old one may be in the middle of something
            self._give_up([*self._tickets.values()], error)

    def _stop(self) -> None:
        with self._door:
            self._closed = True
        while not self._inbox.empty():
            self._sort(self._inbox.get())
        for ticket in (*self._tickets.values(), *self._waiting):
            send(ticket, stopped())
        for errand in self._errands:
            call(errand.loop, settle, errand.done, None, stopped())

    def _take_in(self) -> None:
        """All that has come in; waits for something when there is nothing to do."""
        if not (self.batch.rows or self._waiting or self._errands):
            self._sort(self._wait())
        while not self._inbox.empty():
            self._sort(self._inbox.get())

    def _wait(self) -> Ticket | Errand | None:
        try:
            return self._inbox.get(timeout=PATIENCE)
        except queue.Empty:
            self.batch.cache.release()
            return self._inbox.get()

    def _sort(self, job: Ticket | Errand | None) -> None:
        match job:
            case Ticket():
                self._waiting.append(job)
            case Errand():
                self._errands.append(job)
            case None:
                self._closing = True

    def _drop_cancelled(self) -> None:
        self._leave([ticket for ticket in self._tickets.values() if ticket.cancelled])
        if any(ticket.cancelled for ticket in self._waiting):
            self._waiting = deque(ticket for ticket in self._waiting if not ticket.cancelled)

    def _do_errand(self) -> None:
        """One, so that the running answers wait for no more than that."""
        while self._errands:
            errand = self._errands.popleft()
            if not errand.done.cancelled():
                call(errand.loop, settle, errand.done, *outcome(errand.work))
                return

    def _admit(self) -> None:
        """First come, first served: as many as have room, and as one pass can read, lest the running answers wait."""
        admitted: list[Ticket] = []
        rows, tokens = self.max_rows - len(self.batch.rows), PREFILL_TOKENS
        while self._waiting:
            ticket = self._waiting[0]
            rows -= ticket.place.rows
            tokens -= sum(map(len, ticket.request.prompts.values()))
            if rows < 0 or (tokens < 0 and admitted):
                break
            ticket.place.taken = True
            admitted.append(self._waiting.popleft())
        if admitted:
            self._tickets |= {id(ticket.request): ticket for ticket in admitted}
            self._join(admitted)

    def _join(self, tickets: Sequence[Ticket]) -> None:
        requests = [ticket.request for ticket in tickets]
        try:
            ready = prefill(self.model, requests, self.prefixes)
        except Exception as error:
            if len(tickets) == 1:
                log.exception("a request could not be started")
                self._give_up(tickets, error)
                return
            for ticket in tickets:  # one of them is to blame: the others shall not suffer
                self._join([ticket])
            return
        self._hand_out(self.batch.join(requests, ready))

    def _hand_out(self, said: Said) -> None:
        ended: list[Ticket] = []
        for request, token in said:
            ticket = self._tickets[id(request)]
            if isinstance(token, Exception):
                if not isinstance(token, OnlySeenError):  # else the client is told, and it is its own fault
                    log.error("a request failed", exc_info=token)
                self._give_up([ticket], token)
                continue
            send(ticket, token)
            if token.end is not None:
                ended.append(ticket)
        self._leave(ended)

    def _leave(self, tickets: Sequence[Ticket]) -> None:
        if tickets:
            self.batch.leave([ticket.request for ticket in tickets])
            for ticket in tickets:
                del self._tickets[id(ticket.request)]

    def _give_up(self, tickets: Sequence[Ticket], error: Exception) -> None:
        for ticket in tickets:
            send(ticket, blamed(error))
        self._leave([ticket for ticket in tickets if id(ticket.request) in self._tickets])


def stopped() -> EngineFailed:
    return EngineFailed("The engine has stopped.")


def blamed(error: Exception) -> OnlySeenError:
    return error if isinstance(error, OnlySeenError) else EngineFailed("The engine failed on this request.")


def outcome(work: Callable[[], Any]) -> tuple[Any, OnlySeenError | None]:
    """For another thread: what the work made, or its failure as those who wait for it are told."""
    try:
        return work(), None
    except OnlySeenError as error:
        return None, error
    except Exception as error:
        log.exception("an errand failed")
        return None, blamed(error)


def send(ticket: Ticket, said: Token | OnlySeenError) -> None:
    call(ticket.loop, ticket.said.put_nowait, said)


def call(loop: asyncio.AbstractEventLoop, function: Callable[..., Any], *arguments: Any) -> None:
    with suppress(RuntimeError):  # the loop has been closed, and nobody waits any more
        loop.call_soon_threadsafe(function, *arguments)


def settle(future: asyncio.Future[Any], result: Any, error: OnlySeenError | None) -> None:
    if future.done():  # its waiter was cancelled
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
