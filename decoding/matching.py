"""The way to the matcher: off the event loop, and together with whoever else waits for it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from decoding.answer import Heat
from decoding.ask import Relevance
from decoding.errors import Unsupported
from decoding.matcher import Matcher

MOST_AT_ONCE = 8  # beyond that a pass of the matcher takes longer on a CPU, and the first would wait for the last


class Matching:
    """One thread. What comes while it is at work is looked at in one pass when it has done."""

    def __init__(self) -> None:
        self.matcher: Matcher | None = None
        self._thread = ThreadPoolExecutor(1, "onlyseen-matcher")
        self._asked: list[tuple[Relevance, Future[Heat]]] = []
        self._lock = Lock()

    async def load(self, source: str, device: str) -> None:
        self.matcher = await asyncio.get_running_loop().run_in_executor(self._thread, Matcher, source, device)

    async def heat(self, relevance: Relevance) -> Heat:
        """Raises:
        Unsupported: there is no matcher.
        """
        if self.matcher is None:
            message = "This server has no image-text matcher; start it with --matcher."
            raise Unsupported(message, param="decoding.strategy", code="unsupported")
        found: Future[Heat] = Future()
        with self._lock:
            self._asked.append((relevance, found))
        self._thread.submit(self._work, self.matcher)
        return await asyncio.wrap_future(found)

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown)

    def _work(self, matcher: Matcher) -> None:
        with self._lock:
            taken, self._asked = self._asked[:MOST_AT_ONCE], self._asked[MOST_AT_ONCE:]
        self._look(matcher, [one for one in taken if one[1].set_running_or_notify_cancel()])

    def _look(self, matcher: Matcher, asked: list[tuple[Relevance, Future[Heat]]]) -> None:
        try:
            heats = matcher.heats([relevance for relevance, _ in asked])
        except Exception as error:
            if len(asked) == 1:
                asked[0][1].set_exception(error)
            else:  # one of them is to blame: the others shall not suffer
                for one in asked:
                    self._look(matcher, [one])
            return
        for (_, found), heat in zip(asked, heats, strict=True):
            found.set_result(heat)
