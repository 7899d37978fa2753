"""The rate limit of each API key (`--rate-limit`)."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque

from limits import RateLimitItem, parse

from server.errors import RateLimited


class RateLimiter:
    """Counts the requests of each API key in a moving window, whose clock no change of the system's time moves."""

    def __init__(self, rate: str) -> None:
        """Create a limiter.

        Args:
            rate: Requests of one key in a time, such as "60/minute".
        """
        self._rate: RateLimitItem = parse(rate)
        self._hits: defaultdict[str, deque[float]] = defaultdict(deque)  # owner -> times on the monotonic clock

    def count(self, owner: str) -> None:
        """Count a request.

        Args:
            owner: Hash of the key.

        Raises:
            RateLimited: The window has as many requests as the limit.
        """
        now, hits, window = time.monotonic(), self._hits[owner], self._rate.get_expiry()
        while hits and hits[0] <= now - window:
            hits.popleft()
        if len(hits) >= self._rate.amount:
            message = f"Too many requests with this API key: the limit is {self._rate}."
            raise RateLimited(message, retry_after=max(1, math.ceil(hits[0] + window - now)))
        hits.append(now)
