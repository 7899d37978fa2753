"""Turns an ask into the members of its gang."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from decoding.ask import Ask, Memory
from decoding.errors import BadRequest
from decoding.hf_engine.encoder import Encoded
from decoding.prompt import Prompt
from decoding.vllm_engine.member import MAIN, Digest, Member, Spelled


@dataclass(frozen=True, slots=True)
class Part:
    """One prompt of an ask, and who it is in the gang; None: a request like any other."""

    name: str
    prompt: Prompt
    encoded: Encoded
    member: Member | None
    salt: str | None = None


def cast(
    ask: Ask, encoded: Mapping[str, Encoded], gang: str, firsts: Mapping[str, Sequence[int]], digest: Memory | None
) -> list[Part]:
    """The main part first. `firsts`: tokens with which each choice can begin.

    Raises:
        Unsupported: a strategy is not registered.
    """
    prompts = {MAIN: ask.prompt, **ask.branches}
    size = len(prompts)
    acts = any(strategy.hooks() for strategy in ask.stack)
    is_plain = size == 1 and not (acts or ask.choices or ask.digest or ask.sampling.begin)
    main = Member(
        gang=gang,
        name=MAIN,
        size=size,
        stack=tuple(Spelled.of(strategy) for strategy in ask.stack),
        branches=tuple(ask.branches),
        memories={owner: memory.handle for owner, memory in ask.memories.items()},
        choices=firsts,
        begin=ask.sampling.begin,
        compare=ask.compare,
        digest=Digest(Spelled.of(ask.digest), digest.handle) if ask.digest and digest else None,
    )
    members = {name: main if name == MAIN else Member(gang, name, size) for name in prompts}
    return [Part(name, prompt, encoded[name], None if is_plain else members[name]) for name, prompt in prompts.items()]


def room_for(ask: Ask, parts: Sequence[Part], context: int, blocks: int, block_tokens: int, most_rows: int) -> int:
    """Most tokens of the answer.

    Raises:
        BadRequest: the gang could never run: it has too many rows, or they do not fit the cache together.
    """
    if len(parts) > most_rows:
        raise BadRequest(f"The request needs {len(parts)} rows; this engine runs {most_rows}.")
    lengths = [len(part.encoded) for part in parts]
    room = context - max(lengths)
    wanted = min(ask.sampling.max_tokens or room, room)
    if ask.choices:
        wanted = 1
    if min(lengths) < 2:
        raise BadRequest("A prompt of one token cannot be answered.", param="messages")
    if needed(lengths, wanted, block_tokens) <= blocks:
        return wanted
    if ask.sampling.max_tokens is None:
        fitting = next((room for room in range(wanted, 0, -1) if needed(lengths, room, block_tokens) <= blocks), 0)
        if fitting:
            return fitting
    raise BadRequest(
        f"The prompts and answers of the request's {len(parts)} rows do not fit the engine's cache of "
        f"{blocks * block_tokens} tokens together.",
        param="max_completion_tokens",
        code="context_length_exceeded",
    )


def needed(lengths: Sequence[int], room: int, block_tokens: int) -> int:
    """KV blocks for these prompts with answers of so many tokens."""
    return sum(-(-(length + room) // block_tokens) for length in lengths)
