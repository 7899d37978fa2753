"""Who may ask: API keys, kept as hashes and compared in constant time, each with its own rate limit."""

from __future__ import annotations

import hashlib
import hmac
import math
import time
from collections.abc import Iterable

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from server.errors import RateLimited, Unauthorized
from server.settings import Settings


class Keys:
    """Without keys everybody may ask."""

    def __init__(self, keys: Iterable[str], rate: str | None = None) -> None:
        self._hashes = [digest(key.encode()) for key in keys]
        self._rate: RateLimitItem | None = parse(rate) if rate else None
        self._limiter = MovingWindowRateLimiter(MemoryStorage())

    @classmethod
    def of(cls, settings: Settings) -> Keys:
        return cls(settings.known_keys(), settings.rate_limit)

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def admit(self, authorization: bytes) -> str:
        """Whose request it is, by its header: the hash of the key.

        Raises:
            Unauthorized: it has no key, or one that is not known.
            RateLimited: too many requests with this key.
        """
        scheme, _, key = authorization.partition(b" ")
        given = digest(key.strip())
        # All are compared, so that the time tells nothing of which one fitted.
        fitting = [known for known in self._hashes if hmac.compare_digest(known, given)]
        if scheme.lower() != b"bearer" or not fitting:
            raise Unauthorized("A valid API key is needed: Authorization: Bearer <key>.")
        self._count(given.hex())
        return given.hex()

    def _count(self, who: str) -> None:
        if self._rate is None or self._limiter.hit(self._rate, who):
            return
        free_at = self._limiter.get_window_stats(self._rate, who).reset_time
        message = f"Too many requests with this API key: {self._rate} are allowed."
        raise RateLimited(message, retry_after=max(1, math.ceil(free_at - time.time())))


def digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
