"""How an answer is written down."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from pydantic import BaseModel
from sse_starlette import ServerSentEvent

from decoding.answer import Token
from server.errors import Explanation
from server.reply import Reply


class Letter(Protocol):
    """The documents of one route, for one request."""

    def whole(self, said: list[list[Token]], reply: Reply) -> str:
        """`said`: the tokens of each choice."""
        ...

    def events(self, reply: Reply) -> AsyncGenerator[ServerSentEvent, None]: ...

    def failed(self, explanation: Explanation) -> ServerSentEvent:
        """The last event of a stream that breaks off."""
        ...


def event(data: str, name: str | None = None) -> ServerSentEvent:
    return ServerSentEvent(data, event=name, sep="\n")


DONE = "[DONE]"


def answers(document: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What /openapi.json says that a route answers."""
    return {
        200: {
            "model": document,
            "description": "The whole answer; with `stream`, the same in pieces.",
            "content": {"text/event-stream": {}},  # no schema: tools disagree whether it is of an event or of all
        }
    }
