"""Who has no key stays outside: every route is closed when keys are set, but for the probes."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from typing import Annotated

import anyio
from fastapi import Depends, Request
from starlette.types import ASGIApp, Receive, Scope, Send

from decoding.errors import OnlySeenError
from server.errors import BodyTooLarge
from server.keys import Keys

OPEN = ("/health", "/ready")
PATIENCE = 5.0  # seconds in which a client that is refused may finish sending, so that it reads the refusal


class Guard:
    """Looks at the path that is routed, which no Host header or query can change."""

    def __init__(self, app: ASGIApp, keys: Keys, also_open: Collection[str] = ()) -> None:
        self.app = app
        self.keys = keys
        self.open = frozenset((*OPEN, *also_open))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.keys and scope["path"] not in self.open:
            try:
                scope.setdefault("state", {})["owner"] = self.keys.admit(authorization(scope))
            except OnlySeenError:
                await drain(receive)
                raise
        await self.app(scope, receive, send)


def owner(request: Request) -> str:
    """Whose files and batches the request is about: a key's hash, or nobody's where there are no keys."""
    return str(getattr(request.state, "owner", ""))


Owner = Annotated[str, Depends(owner)]


def authorization(scope: Scope) -> bytes:
    """Empty unless there is exactly one."""
    given = [value for name, value in scope["headers"] if name == b"authorization"]
    return given[0] if len(given) == 1 else b""


async def drain(receive: Receive) -> None:
    with suppress(BodyTooLarge), anyio.move_on_after(PATIENCE):
        while (await receive()).get("more_body", False):
            pass
