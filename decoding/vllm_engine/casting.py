"""Turns an ask into the members of its gang."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from decoding.ask import MAIN, Ask, Memory, Probe
from decoding.encoder import Encoded
from decoding.errors import BadRequest
from decoding.prompt import Prompt
from decoding.strategy import Strategy
from decoding.vllm_engine.member import Digest, Member, Probing, Spelled


@dataclass(frozen=True, slots=True)
class Part:
    """One prompt of an ask, and who it is in the gang; None: a request like any other."""

    name: str
    prompt: Prompt
    encoded: Encoded
    member: Member | None
    salt: str | None = None


def cast(
    ask: Ask,
    encoded: Mapping[str, Encoded],
    gang: str,
    firsts: Mapping[str, Sequence[int]],
    eos: Sequence[int],
    digest: Memory | None,
) -> list[Part]:
    """The main part first. `firsts`: tokens with which each choice can begin; `eos`: tokens that end an answer.

    Raises:
        Unsupported: a strategy is not registered.
    """
    prompts = {MAIN: ask.prompt, **ask.branches}
    size = len(prompts)
    acts = any(strategy.hooks() for strategy in ask.stack)
    is_plain = size == 1 and not (acts or ask.choices or ask.digest or ask.sampling.begin or ask.sampling.min_tokens)
    main = Member(
        gang=gang,
        name=MAIN,
        size=size,
        stack=tuple(Spelled.of(strategy) for strategy in ask.stack),
        branches=tuple(ask.branches),
        memories={owner: memory.handle for owner, memory in ask.memories.items()},
        choices=firsts,
        begin=ask.sampling.begin,
        least=ask.sampling.min_tokens,
        ends=tuple(eos),
        compare=ask.compare,
        digest=Digest(Spelled.of(ask.digest), digest.handle) if ask.digest and digest else None,
    )
    members = {name: main if name == MAIN else Member(gang, name, size) for name in prompts}
    salts = {MAIN: salt(ask.stack, ask.memories)}
    return [
        Part(name, prompt, encoded[name], None if is_plain else members[name], salts.get(name))
        for name, prompt in prompts.items()
    ]


def cast_probe(probe: Probe, encoded: Mapping[str, Encoded], gang: str, memory: Memory) -> list[Part]:
    """The main part first. All prompts run whole, in one step.

    Raises:
        Unsupported: the owner is not registered.
    """
    probing = Probing(Spelled.of(probe.owner), probe.main, probe.layerwise, memory.handle)
    names = [probe.main, *(name for name in probe.prompts if name != probe.main)]
    main = Member(gang, MAIN, len(names), whole=True, probing=probing)
    return [
        Part(MAIN, probe.prompts[name], encoded[name], main, salt((probe.owner,), {probe.owner.name: memory}))
        if name == probe.main
        else Part(name, probe.prompts[name], encoded[name], Member(gang, name, len(names), whole=True))
        for name in names
    ]


def salt(stack: Sequence[Strategy], memories: Mapping[str, Memory]) -> str | None:
    """Of the keys and values that are made under the factors of this stack; None where it has none.

    Equal salts mean equal factors: a probe's main prompt is gone on from, and no other set's is ever read. So the salt
    names the memories: two probes of one prompt may choose other heads by a rounding.
    """
    inside = [strategy for strategy in stack if "heads" in strategy.hooks()]
    handles = {strategy.name: memories[strategy.name].handle for strategy in inside if strategy.name in memories}
    named = [(strategy.name, strategy.model_dump_json(), handles.get(strategy.name)) for strategy in inside]
    return json.dumps(named) if named else None


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


def check_whole(parts: Sequence[Part], most_tokens: int, blocks: int, block_tokens: int, most_rows: int) -> None:
    """Raises:
    BadRequest: the prompts of a probe can never run in one step.
    """
    lengths = [len(part.encoded) for part in parts]
    if len(parts) > most_rows:
        raise BadRequest(f"The probe needs {len(parts)} rows; this engine runs {most_rows}.")
    if sum(lengths) > most_tokens or needed(lengths, 1, block_tokens) > blocks:
        raise BadRequest(
            f"The prompts of the strategy's probe have {sum(lengths)} tokens together, which this engine cannot run "
            "in one step.",
            param="messages",
            code="context_length_exceeded",
        )


def needed(lengths: Sequence[int], room: int, block_tokens: int) -> int:
    """KV blocks for these prompts with answers of so many tokens."""
    return sum(-(-(length + room) // block_tokens) for length in lengths)
