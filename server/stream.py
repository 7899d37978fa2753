"""An answer as server-sent events. After an event that tells of a failure nothing follows."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.errors import explain
from server.letter import Letter
from server.reply import Reply

log = structlog.get_logger("onlyseen.server")

PING = 15  # seconds of silence after which a comment keeps proxies from hanging up
SLOWEST_READER = 60  # seconds that one event may take to be sent


class StreamedReply(EventSourceResponse):
    """Closes the reply when the client has gone, or has read it all."""

    def __init__(self, reply: Reply, letter: Letter) -> None:
        super().__init__(events(reply, letter), ping=PING, sep="\n", send_timeout=SLOWEST_READER)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._reply.close()


async def events(reply: Reply, letter: Letter) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        async for event in letter.events(reply):
            yield event
    except Exception as error:
        explanation = explain(error)
        ours = explanation.kind.status == 500
        say = log.error if ours else log.warning
        say("failed in a stream", code=explanation.body.error.code, exc_info=error if ours else None)
        yield letter.failed(explanation)
