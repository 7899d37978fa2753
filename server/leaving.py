"""How the process ends: with the answers that it has begun, while it sends new questions away."""

from __future__ import annotations

import asyncio
import math
import time
from socket import socket

import uvicorn

from server.service import Service

STEP = 0.05  # seconds between two looks


class LeavingServer(uvicorn.Server):
    """uvicorn's closes its door at once; behind this one who comes too late is told so, with a Retry-After."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        self._service.is_leaving = True
        until = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        while self._service.inside and not self.force_exit and time.monotonic() < until:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(STEP)
        self.config.timeout_graceful_shutdown = max(0, math.ceil(until - time.monotonic()))
        await super().shutdown(sockets)
