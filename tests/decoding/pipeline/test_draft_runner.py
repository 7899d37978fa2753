"""A draft: a generation in the background that a strategy reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from decoding.outputs import NO_TOKEN, RequestStats, Token
from decoding.pipeline.draft_runner import Draft


async def test_aborted_draft_counts_passes_before_a_token_of_claims() -> None:
    async def stream() -> AsyncGenerator[Token, None]:
        yield Token(1, "a", stats=RequestStats(prompt_tokens=10, forward_passes=3))
        yield Token(NO_TOKEN, "")
        await asyncio.Event().wait()

    draft = Draft(stream())
    for _ in range(2):
        await draft.read_token()
    await draft.close()
    assert draft.usage.forward_passes == 3
