"""The memory for the bodies of all requests together, or of all responses, with a share for each API key."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

from starlette.requests import ClientDisconnect, Request

from decoding.errors import OnlySeenError, Overloaded
from server.errors import UnsupportedMediaType
from server.middleware.request_body import MIN_BYTES_PER_SECOND, drain_body
from server.schemas.json_bounds import JsonBoundsScanner

STALL_SECONDS = 2.0  # that a body may be behind `MIN_BYTES_PER_SECOND` before it is the first to be refused
BUDGET_FULL = "Too many request bodies are in memory; try again in a moment."


class BodyBudget:
    """The memory for bodies, of requests or of responses.

    When a body does not fit, the largest stalled body is refused, or else the largest unfinished one. So bodies that
    are sent or read slowly do not shut out others. A key whose share is full makes room among its own bodies.
    """

    def __init__(
        self,
        max_bytes: int,
        max_owner_bytes: int | None = None,
        *,
        message: str = BUDGET_FULL,
        code: str = "body_memory_full",
    ) -> None:
        """Create a budget.

        Args:
            max_bytes: Bytes of all bodies.
            max_owner_bytes: Bytes of all bodies of one API key. None: no bound of its own.
            message: Message of the refusal of a body.
            code: Its code.
        """
        self.max_bytes = max_bytes
        self.max_owner_bytes = max_owner_bytes or max_bytes
        self.bytes_by_owner: Counter[str] = Counter()
        self.unfinished: set[BudgetedBody] = set()
        self.scan_lock = asyncio.Lock()
        self.message = message
        self.code = code

    @property
    def used_bytes(self) -> int:
        return self.bytes_by_owner.total()

    def add(self, owner: str, size: int) -> None:
        """Count the bytes of a body, or no longer count them if `size` is negative."""
        self.bytes_by_owner[owner] += size
        if not self.bytes_by_owner[owner]:
            del self.bytes_by_owner[owner]

    def make_room(self, size: int, body: BudgetedBody) -> None:
        """Refuse other unfinished bodies until `size` more bytes fit.

        Args:
            size: Bytes.
            body: The body that grows. It counts with the new bytes.

        Raises:
            Overloaded: `body` itself is the one to refuse.
        """
        now = asyncio.get_running_loop().time()
        while True:
            is_share_full = self.bytes_by_owner[body.owner] + size > self.max_owner_bytes
            if not is_share_full and self.used_bytes + size <= self.max_bytes:
                return
            others = [
                other
                for other in self.unfinished
                if other is not body and other.counted_bytes and (other.owner == body.owner or not is_share_full)
            ]
            largest = max(others, key=lambda other: (other.is_stalled(now), other.counted_bytes), default=None)
            if largest is None or not (largest.is_stalled(now) or largest.counted_bytes > body.counted_bytes + size):
                raise Overloaded(self.message, code=self.code)
            largest.refuse()


class BudgetedBody:
    """A body of which the budget counts bytes.

    Attributes:
        counted_bytes: The bytes that count.
    """

    def __init__(self, budget: BodyBudget, owner: str) -> None:
        self.owner = owner
        self.counted_bytes = 0
        self._budget = budget
        self._stalls_at = asyncio.get_running_loop().time() + STALL_SECONDS
        self._timeout = asyncio.timeout(None)  # `refuse` sets it, to end a wait for the client
        self._is_refused = False

    def add_bytes(self, size: int, *, makes_room: bool = True) -> None:
        """Count more bytes.

        Args:
            size: Bytes.
            makes_room: Whether `BodyBudget.make_room` makes room for them or raises `Overloaded`. Otherwise they count
                even if they do not fit.
        """
        if makes_room:
            self._budget.make_room(size, self)
        self._budget.add(self.owner, size)
        self.counted_bytes += size

    def note_progress(self, size: int) -> None:
        """Note that the client has sent or read bytes. Single bytes do not keep a body from stalling."""
        now = asyncio.get_running_loop().time()
        self._stalls_at = min(max(self._stalls_at, now) + size / MIN_BYTES_PER_SECOND, now + STALL_SECONDS)

    def is_stalled(self, now: float) -> bool:
        """Return whether the client is too slow."""
        return now > self._stalls_at

    def refuse(self) -> None:
        """End the work on this body, and free its memory."""
        self._is_refused = True
        self.release()
        self._budget.unfinished.discard(self)
        with suppress(RuntimeError):  # its own deadline has just ended the wait
            self._timeout.reschedule(asyncio.get_running_loop().time())

    def release(self) -> None:
        """Free the bytes, and return them to the budget."""
        self.return_budget()

    def return_budget(self) -> None:
        """Return the bytes to the budget, once neither they nor what was parsed from them is needed."""
        self._budget.add(self.owner, -self.counted_bytes)
        self.counted_bytes = 0


class BodyBuffer(BudgetedBody):
    """The body of one request in memory."""

    def __init__(self, budget: BodyBudget, owner: str) -> None:
        super().__init__(budget, owner)
        self.content = bytearray()
        self.data_urls: list[tuple[int, int]] = []  # start and end of the long ones in the content

    async def read(self, request: Request) -> None:
        """Read the whole body.

        Args:
            request: The request, whose body has not been read.

        Raises:
            OnlySeenError: The body exceeds a bound on its shape, its size or its time. A client that is still sending
                has had time to finish.
            Overloaded: The memory for bodies is full.
            ClientDisconnect: The client has disconnected.
            TimeoutError: Reading raised it, not the refusal of this body.
        """
        scanner, more_body = JsonBoundsScanner(), True
        self.data_urls = scanner.data_urls
        self._budget.unfinished.add(self)
        try:
            async with self._timeout:
                while more_body:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    more_body = message.get("more_body", False)
                    await self._add(message.get("body", b""), scanner)
        except TimeoutError:
            if self._timeout.expired():
                raise Overloaded(self._budget.message, code=self._budget.code) from None
            raise
        except OnlySeenError:
            self.release()
            if more_body:
                await drain_body(request.receive)
            raise
        finally:
            self._budget.unfinished.discard(self)

    async def _add(self, part: bytes, scanner: JsonBoundsScanner) -> None:
        """Scan and keep a part of the body.

        Args:
            part: The bytes.
            scanner: Checks the bounds of the body.
        """
        async with self._budget.scan_lock:  # one body at a time, so that many bodies delay others no more than one
            position = scanner.scan(part, 0)
            while position < len(part):
                await asyncio.sleep(0)
                position = scanner.scan(part, position)
            self._check_refusal()
            unfinished = len(self._budget.unfinished)
            self.add_bytes(len(part))
            self.content += part
            self.note_progress(len(part))
            if len(self._budget.unfinished) < unfinished:
                await asyncio.sleep(0)  # the search for the largest body takes time, so one part an iteration makes it
        self._check_refusal()

    def _check_refusal(self) -> None:
        """Check whether another body has refused this one during a wait. The timeout that `refuse` sets may fire later.

        Raises:
            Overloaded: It has.
        """
        if self._is_refused:
            raise Overloaded(self._budget.message, code=self._budget.code)

    def release(self) -> None:
        """Free the bytes, and return them to the budget."""
        self.content.clear()  # in place, because the traceback of a refusal may hold the array for a while
        super().release()


@asynccontextmanager
async def read_json_body(request: Request, budget: BodyBudget, owner: str) -> AsyncGenerator[BodyBuffer, None]:
    """Read the body of a JSON request, and hold its share of the budget for as long as the context lasts.

    Args:
        request: The request.
        budget: The memory for bodies.
        owner: Hash of the API key.

    Yields:
        The complete body.

    Raises:
        UnsupportedMediaType: The content type is not JSON. A browser sends a form to other origins without a preflight.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        await drain_body(request.receive)
        raise UnsupportedMediaType("Content-Type must be application/json.")
    buffer = BodyBuffer(budget, owner)
    try:
        await buffer.read(request)
        yield buffer
    finally:
        buffer.release()
