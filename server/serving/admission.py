"""Admission control: a request whose body has been read counts as active, or is refused."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from decoding.errors import OnlySeenError, Overloaded
from server.errors import ServiceUnavailable
from server.middleware.auth import OwnerDep
from server.middleware.body_budget import BodyBuffer, read_json_body
from server.middleware.request_body import drain_body
from server.service import DRAINING_MESSAGE, Service, ServiceDep

QUEUE_FULL = "The queue is full; try again in a moment."
KEY_QUEUE_FULL = "This API key has as many active requests as it may have; try again in a moment."


@dataclass(slots=True)
class Admission:
    """An admitted request and its body. It counts as active until its response is complete."""

    service: Service
    owner: str
    body: BodyBuffer
    deadline: float  # when the request times out, in seconds of the event loop's clock
    _rows: int = field(default=0, init=False)

    @property
    def rows_at_once(self) -> int | None:
        """The rows that the request may take at a time; None: all."""
        return self.service.max_key_rows

    async def wait(self, estimate_rows: Callable[[], Awaitable[int]]) -> None:
        """Wait until the request may enter the engine. With fewer than two API keys this does not wait.

        Args:
            estimate_rows: Returns the rows that the request is expected to take.
        """
        if self.service.fair_queue is not None:
            self._rows = await self.service.fair_queue.acquire(self.owner, await estimate_rows())

    def return_body_budget(self) -> None:
        """Return the memory for the body to the budget, when neither its bytes nor its data URLs are kept."""
        self.body.return_budget()

    def release_rows(self) -> None:
        """Hand back the rows, so that they do not wait for a client that reads its response slowly."""
        if self.service.fair_queue is not None and self._rows:
            self.service.fair_queue.release(self.owner, self._rows)
        self._rows = 0

    def release(self) -> None:
        """Hand back the rows. The request is active no longer."""
        self.release_rows()
        self.service.active_requests -= 1
        self.service.active_by_owner[self.owner] -= 1


async def admit(request: Request, service: ServiceDep, owner: OwnerDep) -> AsyncGenerator[Admission, None]:
    """Read the body, and count the request as active until the last byte of its response has been sent.

    A request is not active while its body arrives. The body of a request that is refused before is discarded.

    Yields:
        The admitted request.

    Raises:
        OnlySeenError: The server is draining, the queue is full, or the body is refused.
    """
    try:
        check_capacity(service, owner)
    except OnlySeenError:
        await drain_body(request.receive)
        raise
    async with read_json_body(request, service.body_budget, owner) as body:
        check_capacity(service, owner)
        service.active_requests += 1
        service.active_by_owner[owner] += 1
        deadline = asyncio.get_running_loop().time() + service.settings.request_timeout
        admission = Admission(service, owner, body, deadline)
        try:
            yield admission
        finally:
            admission.release()


def check_capacity(service: Service, owner: str) -> None:
    """Check that one more request may be active.

    Args:
        service: The server's `Service`.
        owner: The hash of the API key, or "" on a server without keys.

    Raises:
        ServiceUnavailable: The server is draining.
        Overloaded: The queue is full, or the key's share of it is.
    """
    if service.is_draining:
        raise ServiceUnavailable(DRAINING_MESSAGE)
    settings = service.settings
    max_active = settings.resolved_max_rows + settings.max_waiting  # each request needs at least one row
    if service.ready_engine.is_full or service.active_requests >= max_active:
        raise Overloaded(QUEUE_FULL, code="queue_full")
    if service.active_by_owner[owner] >= settings.compute_key_share(max_active):
        raise Overloaded(KEY_QUEUE_FULL, code="queue_full")


async def refuse_while_draining(request: Request, service: ServiceDep) -> None:
    """Refuse a request of a route without admission, such as an upload.

    Raises:
        ServiceUnavailable: The server is draining.
    """
    if service.is_draining:
        await drain_body(request.receive)
        raise ServiceUnavailable(DRAINING_MESSAGE)


AdmissionDep = Annotated[Admission, Depends(admit)]
NotDraining = Depends(refuse_while_draining)
