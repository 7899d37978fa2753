"""Calls the strategies' hooks on the rows of a step, once for all gangs of one kind, on the device.

The plan of a step holds index tensors only, and is kept for as long as the same rows stand in the batch: a step costs
no Python per request beyond what its strategies do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch
from torch import Tensor

from decoding.ask import MAIN
from decoding.errors import Overloaded
from decoding.onion import joined, through
from decoding.strategy import Captured, Strategy, Tensors
from decoding.vllm_engine.member import Member, Spelled
from decoding.vllm_engine.memories import Memories
from decoding.vllm_engine.rows import FAILED, Notes, Rows

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Stack:
    """A gang's strategies, outermost first, and what theirs must agree in with those of others to share a call."""

    strategies: tuple[Strategy, ...]
    kind: object

    @classmethod
    def of(cls, spelled: tuple[Spelled, ...]) -> Stack:
        strategies = tuple(strategy.build() for strategy in spelled)
        return cls(strategies, tuple(strategy.kind() for strategy in strategies))


@dataclass(slots=True)
class Kind:
    """Gangs whose stacks are of one kind, with the same branch names and shapes of memories: one call of each hook."""

    members: list[Member]  # the main ones
    ids: list[str]
    stacks: list[tuple[Strategy, ...]]  # of each
    stack: tuple[Strategy, ...]  # of all
    mains: Tensor  # [gangs] rows
    branches: dict[str, Tensor]  # name -> [gangs] rows
    memories: dict[str, Tensors]  # owner -> name -> [gangs, *shape]
    numbers: list[int]  # the rows of `mains`, on the host

    @property
    def has_logits(self) -> bool:
        return any("logits" in strategy.hooks() for strategy in self.stack)


@dataclass(slots=True)
class Drawn:
    """What a kind's rows were before the sampler, kept until it has drawn."""

    kind: Kind
    raw: Tensor  # [gangs, vocab]
    scores: Tensor  # [gangs, vocab]
    compared: dict[int, tuple[Tensor, Tensor]]  # gang -> log-probabilities with and without the picture, [vocab] each


class Mixer:
    """Of one model runner. `mix` before the sampler, `spread` after it."""

    def __init__(self, memories: Memories, device: torch.device) -> None:
        self.memories = memories
        self.device = device
        self._composition: tuple[object, ...] = ()
        self._kinds: list[Kind] = []
        self._leaders, self._followers = (torch.empty(0, dtype=torch.long) for _ in range(2))
        self._drawn: list[Drawn] = []
        self._stacks: dict[tuple[Spelled, ...], Stack] = {}

    def mix(self, rows: Rows, logits: Tensor, notes: Notes) -> Tensor:
        """[rows, vocab] as the model gave them -> the same with the main rows as their stacks leave them, float32.

        Rows of a gang that is not complete in this step are left alone: their tokens will be dropped.
        """
        if rows.composition != self._composition:
            self._arrange(rows)
        self._drawn = []
        if not self._kinds:
            return logits
        mixed = logits.float() if logits.dtype != torch.float32 else logits
        for kind in self._kinds:
            hold_open(kind, rows, mixed)
            raw = mixed[kind.mains]
            scores = self._through(kind, raw, mixed, rows, notes)
            self._drawn.append(Drawn(kind, raw, scores, compared(kind, raw, mixed)))
            mixed[kind.mains] = scores
        return mixed

    def spread(self, rows: Rows, sampled: Tensor, notes: Notes) -> None:
        """The token of each main row goes to its branches, in place. `sampled`: [rows, 1]."""
        for kind in self._kinds:
            force(kind, rows, sampled)
        if len(self._followers):
            sampled[self._followers] = sampled[self._leaders]
        for drawn in self._drawn:
            tokens = sampled[drawn.kind.mains, 0].long()
            self._tell(drawn, tokens, notes)
            self._digest(drawn, notes)
        self._drawn = []

    def _arrange(self, rows: Rows) -> None:
        gangs: dict[str, dict[str, int]] = defaultdict(dict)
        for row, member in rows.members.items():
            if rows.draws[row]:
                gangs[member.gang][member.name] = row
        kinds: dict[object, list[dict[str, int]]] = defaultdict(list)
        leaders: list[int] = []
        followers: list[int] = []
        for places in gangs.values():
            size = next(rows.members[row].size for row in places.values())
            if len(places) < size or MAIN not in places:
                continue
            main = rows.members[places[MAIN]]
            leaders += [places[MAIN]] * (size - 1)
            followers += [row for name, row in places.items() if name != MAIN]
            kinds[self._built(main.stack).kind, main.branches, self._shapes(main)].append(places)
        self._kinds = [self._kind(alike, rows) for alike in kinds.values()]
        self._leaders, self._followers = self._index(leaders), self._index(followers)
        self._composition = rows.composition

    def _kind(self, alike: list[dict[str, int]], rows: Rows) -> Kind:
        numbers = [places[MAIN] for places in alike]
        members = [rows.members[row] for row in numbers]
        stacks = [self._built(member.stack).strategies for member in members]
        return Kind(
            members=members,
            ids=[rows.ids[row] for row in numbers],
            stacks=stacks,
            stack=joined(stacks, self.device),
            mains=self._index(numbers),
            branches={name: self._index([places[name] for places in alike]) for name in members[0].branches},
            memories={owner: self._stacked(owner, members) for owner in members[0].memories},
            numbers=numbers,
        )

    def _stacked(self, owner: str, members: list[Member]) -> Tensors:
        recalled = [self.memories.recall(member.memories[owner]) for member in members]
        return {name: torch.stack([memory[name] for memory in recalled]) for name in recalled[0]}

    def _shapes(self, main: Member) -> object:
        """Of what memories of one kind must agree in to be stacked."""
        return tuple(
            (owner, name, tensor.shape)
            for owner, handle in sorted(main.memories.items())
            for name, tensor in self.memories.recall(handle).items()
        )

    def _built(self, spelled: tuple[Spelled, ...]) -> Stack:
        stack = self._stacks.get(spelled)
        if stack is None:
            if len(self._stacks) > 1000:  # parameters are the clients' to choose
                self._stacks.clear()
            stack = self._stacks[spelled] = Stack.of(spelled)
        return stack

    def _index(self, rows: list[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long).to(self.device, non_blocking=True)

    def _through(self, kind: Kind, raw: Tensor, logits: Tensor, rows: Rows, notes: Notes) -> Tensor:
        if not kind.has_logits:
            return raw
        branches = {name: logits[places] for name, places in kind.branches.items()}
        position = torch.from_numpy(rows.generated[kind.numbers]).to(self.device)[:, None]
        try:
            return awake(kind, raw, branches, position)
        except Exception:  # a strategy's fault, which must not end the others' answers
            log.exception("a strategy failed", strategies=[strategy.name for strategy in kind.stack])
            for request in kind.ids:
                notes.setdefault(request, {})["failed"] = FAILED
            return raw

    def _tell(self, drawn: Drawn, tokens: Tensor, notes: Notes) -> None:
        changed = drawn.scores.argmax(-1) != drawn.raw.argmax(-1)
        for number, (request, moved) in enumerate(zip(drawn.kind.ids, changed.tolist(), strict=True)):
            note = notes.setdefault(request, {})
            note["changed"] = moved
            if number in drawn.compared:
                seeing, blind = (logprobs[tokens[number]] for logprobs in drawn.compared[number])
                note["grounding"] = float(seeing - blind)
            if drawn.kind.members[number].begin:
                note["logprob"] = float(drawn.scores[number].log_softmax(-1)[tokens[number]])
            if choices := drawn.kind.members[number].choices:
                note["choices"] = weighed(drawn.scores[number], choices)

    def _digest(self, drawn: Drawn, notes: Notes) -> None:
        for number, member in enumerate(drawn.kind.members):
            if member.digest is None:
                continue
            request = drawn.kind.ids[number]
            try:
                (strategy,) = self._built((member.digest.strategy,)).strategies
                captured = Captured(logits=drawn.raw[number])
                self.memories.keep(
                    member.digest.handle,
                    strategy.digest(self.memories.recall_or_nothing(member.digest.handle), captured),
                )
            except Overloaded as error:
                notes.setdefault(request, {}).update(failed=error.message, code=error.code)
            except Exception:
                log.exception("a digest failed", strategy=member.digest.strategy.name)
                notes.setdefault(request, {})["failed"] = "What the answer says could not be remembered."


def awake(kind: Kind, raw: Tensor, branches: Mapping[str, Tensor], position: Tensor) -> Tensor:
    """`through`, but where a strategy does not wake its branches it is not shown them.

    Here branches never sleep: they stand in the batch at every step. What a strategy makes of a step is the same.
    """
    sleepers = [strategy for strategy in kind.stack if "wakes" in strategy.hooks()]
    if not sleepers:
        return through(kind.stack, raw, branches, kind.memories, position)
    scores = raw.clone()
    for names, numbers in by_waking(sleepers, raw).items():
        own = torch.tensor(numbers, device=raw.device)
        shown = {name: logits[own] for name, logits in branches.items() if name.partition("/")[0] not in names}
        kept = {owner: {name: of[own] for name, of in memory.items()} for owner, memory in kind.memories.items()}
        stack = joined([kind.stacks[number] for number in numbers], raw.device)
        scores[own] = through(stack, raw[own], shown, kept, position[own])
    return scores


def by_waking(sleepers: Sequence[Strategy], raw: Tensor) -> dict[frozenset[str], list[int]]:
    """Names of the strategies whose branches sleep in this step -> numbers of the gangs."""
    needed = torch.stack([strategy.wakes(raw) for strategy in sleepers], dim=-1).tolist()
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for number, wakes in enumerate(needed):
        groups[frozenset(each.name for each, is_up in zip(sleepers, wakes, strict=True) if not is_up)].append(number)
    return groups


def compared(kind: Kind, raw: Tensor, logits: Tensor) -> dict[int, tuple[Tensor, Tensor]]:
    """Before the sampler, which may change the rows in place."""
    return {
        number: (raw[number].log_softmax(-1), logits[kind.branches[member.compare][number]].log_softmax(-1))
        for number, member in enumerate(kind.members)
        if member.compare is not None
    }


def hold_open(kind: Kind, rows: Rows, logits: Tensor) -> None:
    """In place: answers that are too short do not end. vLLM sees to that after cuts, which may keep the end alone."""
    for row, member in zip(kind.numbers, kind.members, strict=True):
        if rows.generated[row] < member.least:
            logits[row, list(member.ends)] = -torch.inf


def force(kind: Kind, rows: Rows, sampled: Tensor) -> None:
    """Answers that are to begin with given tokens do."""
    for row, member in zip(kind.numbers, kind.members, strict=True):
        if rows.generated[row] < len(member.begin):
            sampled[row] = member.begin[rows.generated[row]]


def weighed(scores: Tensor, choices: Mapping[str, Any]) -> dict[str, float]:
    logprobs = scores.log_softmax(-1)
    return {choice: float(logprobs[list(tokens)].logsumexp(-1)) for choice, tokens in choices.items()}
