"""The memory for images of the requests that wait or run: decoded, fetched, or as the model reads them."""

from __future__ import annotations

from types import TracebackType

from server.fair_queue import FairQueue


class ImageMemory:
    """Bounds the images of all requests in one of their forms.

    A request whose images do not fit waits, and API keys take turns.

    A request reserves memory once, for all of its images, so that no two requests wait for each other. One that needs
    more than there is runs while no other holds any.
    """

    def __init__(self, max_bytes: int, max_owner_bytes: int | None = None) -> None:
        """Create the memory.

        Args:
            max_bytes: Bytes of all images.
            max_owner_bytes: Bytes of the images of one API key; None: no bound of its own.
        """
        self._queue = FairQueue(max_bytes, max_owner_bytes)

    def lease(self, cache_salt: str | None) -> ImageLease:
        """Return a lease, without bytes, for the images of a request. Requests with one salt have one share."""
        return ImageLease(self._queue, cache_salt or "")


class ImageLease:
    """The part of the memory that one request holds until the `with` statement ends or `release` is called."""

    def __init__(self, queue: FairQueue, owner: str) -> None:
        self.bytes = 0
        self._queue = queue
        self._owner = owner

    def __enter__(self) -> ImageLease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def fits(self, size: int) -> bool:
        """Return whether `reserve` would not wait."""
        return self._queue.is_free(self._owner, size)

    async def reserve(self, size: int) -> None:
        """Wait for `size` bytes. Call it once."""
        self.bytes = await self._queue.acquire(self._owner, size)

    def shrink(self, size: int) -> None:
        """Hand back all but `size` bytes."""
        if self.bytes > size:
            self._queue.release(self._owner, self.bytes - size)
            self.bytes = size

    def release(self) -> None:
        """Hand back all bytes."""
        self.shrink(0)
