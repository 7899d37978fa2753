"""Graceful shutdown: running requests finish, new ones are refused with 503."""

from __future__ import annotations

import asyncio
import math
import time
from socket import socket

import uvicorn

from server.service import Service

POLL_INTERVAL = 0.05  # seconds


class DrainingServer(uvicorn.Server):
    """A uvicorn server that keeps its socket open while it drains.

    uvicorn itself closes the socket at once. This server answers late requests with 503 and Retry-After.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Wait for running requests, for at most `timeout_graceful_shutdown` seconds, then shut down."""
        self._service.is_draining = True
        deadline = time.monotonic() + (self.config.timeout_graceful_shutdown or 0)
        while self._service.active_requests and not self.force_exit and time.monotonic() < deadline:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(POLL_INTERVAL)
        self.config.timeout_graceful_shutdown = max(0, math.ceil(deadline - time.monotonic()))
        await super().shutdown(sockets)
