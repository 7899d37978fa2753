"""Effects of a strategy that reads its own answer while it is generated: see `Strategy.stream`.

A draft is a generation of the request's answer in the background. The strategy reads it, sends what it accepts to the
client, and may start another draft that continues from an accepted prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from decoding.outputs import CheckedClaim, FinishReason, Token
from decoding.requests import GenerateRequest


@dataclass(frozen=True, slots=True)
class StartDraft:
    """Generate the answer from a prefix on. The draft before is aborted.

    The first draft, without prefix and ruled-out phrases, is the answer of the inner strategies, seed included.

    Attributes:
        prefix: Token ids and texts that begin the answer; the engine encodes the texts. They are not generated again.
        ruled_out: Phrases that the answer must not contain after the prefix.
        ignores_stop: The draft does not end at a stop string, and no token lacks text that may begin one. The stop
            strings then end the answer where the client gets them.
    """

    prefix: tuple[int | str, ...] = ()
    ruled_out: tuple[str, ...] = ()
    ignores_stop: bool = False


@dataclass(frozen=True, slots=True)
class ReadDraft:
    """Read tokens of the draft. The reply is a `Segment`.

    Attributes:
        until: Called with the text of the tokens read so far; reading ends where it returns true.
        send: Send the tokens to the client as they are read.
    """

    until: Callable[[str], bool]
    send: bool = False


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens of a draft, in order.

    Attributes:
        tokens: At least one, unless the draft has ended before.
        reason: Finish reason, or None while the draft goes on.
    """

    tokens: tuple[Token, ...]
    reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class SendTokens:
    """Send tokens, or the claims of sent tokens, to the client. Sent tokens and claims cannot be taken back."""

    tokens: tuple[Token, ...] = ()
    claims: tuple[CheckedClaim, ...] = ()


DraftEffect = StartDraft | ReadDraft | SendTokens | list[GenerateRequest]
DraftProgram = Generator[DraftEffect, Any, FinishReason]


def join_text(tokens: list[Token] | tuple[Token, ...]) -> str:
    """Join the texts of tokens."""
    return "".join(token.text for token in tokens)
