"""An answer as server-sent events, closed by `data: [DONE]`; after an `error` event nothing follows."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import anyio
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from server.completion import Chunk, Letterhead, counted, to_json
from server.errors import explain
from server.reply import Reply

log = structlog.get_logger("onlyseen.server")

PING = 15  # seconds of silence after which a comment keeps proxies from hanging up
SLOWEST_READER = 60  # seconds that one event may take to be sent


class StreamedReply(EventSourceResponse):
    """Closes the reply when the client has gone, or has read it all."""

    def __init__(self, reply: Reply, head: Letterhead, *, include_usage: bool) -> None:
        content = events(reply, head, include_usage)
        super().__init__(content, ping=PING, sep="\n", send_timeout=SLOWEST_READER)
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._reply.close()


async def events(reply: Reply, head: Letterhead, include_usage: bool) -> AsyncGenerator[ServerSentEvent, None]:
    try:
        async for document in documents(reply, head, include_usage):
            yield ServerSentEvent(document, sep="\n")
    except Exception as error:
        explanation = explain(error)
        log.error("failed in a stream", code=explanation.body.error.code, exc_info=error)
        yield ServerSentEvent(explanation.json, event="error", sep="\n")
        return
    yield ServerSentEvent("[DONE]", sep="\n")


async def documents(reply: Reply, head: Letterhead, include_usage: bool) -> AsyncGenerator[str, None]:
    async for chunk in chunks(reply, head):
        if include_usage:
            chunk.usage = None  # said on every chunk but the last
        elif reply.is_over and chunk.choices[0].finish_reason:
            chunk.onlyseen = reply.receipt
        yield to_json(chunk)
    if include_usage:
        last = head.chunk()
        last.usage, last.onlyseen = counted(reply.usage), reply.receipt
        yield to_json(last)


async def chunks(reply: Reply, head: Letterhead) -> AsyncGenerator[Chunk, None]:
    opened: set[int] = set()
    async for choice, token in reply.tokens():
        if choice not in opened:
            opened.add(choice)
            yield head.chunk(head.opening(choice))
        if token.text or head.entries(token):
            yield head.chunk(head.piece(choice, token))
        if token.end is not None:
            yield head.chunk(head.ending(choice, token.end.reason))
