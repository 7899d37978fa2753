"""Branches that sleep until a step needs them, and then read in one pass all that was said meanwhile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from decoding.encoder import Encoded
from decoding.hf_engine.grouping import grouped
from decoding.hf_engine.model import Model, Prefilled
from decoding.hf_engine.request import Request


@dataclass(eq=False, slots=True)
class Sleeper:
    """One branch of a request. It takes no row of the batch, and has a cache of its own."""

    prompt: Encoded
    read: Prefilled | None = None  # as far as it has come; None: not even its prompt
    waiting: list[int] = field(default_factory=list)  # tokens of the answer that it has not read


class Dormitory:
    def __init__(self, model: Model) -> None:
        self.model = model
        self._sleepers: dict[int, dict[str, Sleeper]] = {}  # id of the request, branch

    def admit(self, request: Request) -> None:
        if request.dormant:
            self._sleepers[id(request)] = {name: Sleeper(request.prompts[name]) for name in request.dormant}

    def leave(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self._sleepers.pop(id(request), None)

    def hear(self, request: Request, token: int) -> None:
        """What was said, for when they wake."""
        for sleeper in self._sleepers.get(id(request), {}).values():
            sleeper.waiting.append(token)

    def wake(self, wanted: Sequence[tuple[Request, Iterable[str]]]) -> list[Mapping[str, Tensor]]:
        """For each request, branch -> [vocab] after the answer so far.

        A sleeper counts one row each time, however many tokens it has to read, as a prompt does.
        """
        woken = [{name: self._sleepers[id(request)][name] for name in names} for request, names in wanted]
        for (request, _), own in zip(wanted, woken, strict=True):
            request.spent.forward_passes += len(own)
        everyone = [sleeper for own in woken for sleeper in own.values()]
        self._start([sleeper for sleeper in everyone if sleeper.read is None])
        self._catch_up([sleeper for sleeper in everyone if sleeper.waiting])
        return [{name: sleeper.read.logits for name, sleeper in own.items() if sleeper.read} for own in woken]

    def _start(self, sleepers: Sequence[Sleeper]) -> None:
        """The prompt and what was said after it, as if it were one prompt."""
        whole = [sleeper.prompt.followed_by(sleeper.waiting) for sleeper in sleepers]
        for group in grouped(whole):
            done = self.model.prefill([whole[number] for number in group])
            for number, read in zip(group, done, strict=True):
                sleepers[number].read = read
                sleepers[number].waiting.clear()

    def _catch_up(self, sleepers: Sequence[Sleeper]) -> None:
        if sleepers:
            caches = [sleeper.read for sleeper in sleepers if sleeper.read]
            done = self.model.extend(caches, [sleeper.waiting for sleeper in sleepers])
            for sleeper, read in zip(sleepers, done, strict=True):
                sleeper.read = read
                sleeper.waiting.clear()
