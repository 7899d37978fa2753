"""What vLLM says of one request, in order and unmerged."""

from __future__ import annotations

import asyncio
from typing import Any

from vllm.v1.engine.output_processor import RequestOutputCollector


class Outbox(RequestOutputCollector):
    """vLLM's own collector merges what waits in it, and loses what we note beside a token."""

    def __init__(self, request_id: str, output_kind: Any) -> None:
        super().__init__(output_kind, request_id)
        self._said: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, output: Any) -> None:
        self._said.put_nowait(output)

    async def get(self) -> Any:
        """Raises: Exception: the engine has died."""
        output = await self._said.get()
        if isinstance(output, Exception):
            raise output
        return output
