"""Several streams of tokens as one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import anyio

from decoding.answer import Token


def together(streams: Sequence[AsyncGenerator[Token, None]]) -> AsyncGenerator[tuple[int, Token], None]:
    """Each token with the number of its stream, as they come. Closing this closes every stream at once.

    One stream needs no tasks, which would be the most of what the server adds to a token.
    """
    return alone(streams[0]) if len(streams) == 1 else several(streams)


async def several(streams: Sequence[AsyncGenerator[Token, None]]) -> AsyncGenerator[tuple[int, Token], None]:
    """Nothing comes before every stream has begun: a refusal of one is raised while nothing has been said yet."""

    async def following(stream: AsyncGenerator[Token, None]) -> Token | None:
        return await anext(stream, None)

    pending = {asyncio.create_task(following(stream)): index for index, stream in enumerate(streams)}
    when = asyncio.FIRST_EXCEPTION
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=when)
            when = asyncio.FIRST_COMPLETED
            arrived = sorted((pending.pop(task), task) for task in done)
            # All are looked at before the first is raised, lest asyncio reports the others as missed.
            if failures := [failure for _, task in arrived if (failure := task.exception())]:
                raise failures[0]
            said = [(index, token) for index, task in arrived if (token := task.result()) is not None]
            for index, _ in said:
                pending[asyncio.create_task(following(streams[index]))] = index
            for index, token in said:
                yield index, token
    finally:
        # Shielded: whoever cancels us must find the streams closed when we are done.
        with anyio.CancelScope(shield=True):
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
            for stream in streams:
                await stream.aclose()


async def alone(stream: AsyncGenerator[Token, None]) -> AsyncGenerator[tuple[int, Token], None]:
    try:
        async for token in stream:
            yield 0, token
    finally:
        with anyio.CancelScope(shield=True):
            await stream.aclose()
