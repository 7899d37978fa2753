"""The passes over the prompts of requests that join: what is the same is read once."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from decoding.ask import MAIN
from decoding.hf_engine.grouping import grouped
from decoding.hf_engine.inside import Inside
from decoding.hf_engine.model import Model, Prefilled, Read
from decoding.hf_engine.narrowing import spread
from decoding.hf_engine.prefixes import Beginning, Prefixes, cut
from decoding.hf_engine.request import Request

Named = tuple[Request, str]  # a prompt of a request
Ready = dict[tuple[int, str], Prefilled]  # id of a request, prompt name -> its prompt after its pass


def prefill(model: Model, requests: Sequence[Request], prefixes: Prefixes) -> Ready:
    """Every prompt of every request after its pass; prompts to which the same is done are run once."""
    ready: Ready = {}
    todo: dict[object, list[Named]] = {}
    for request in requests:
        request.spent.started = time.perf_counter()
        for name, prompt in request.awake.items():
            kept = request.reusable() if name == MAIN else None
            if kept is not None:
                ready[id(request), name] = kept
            else:
                origin = None if request.is_plain(name) else (name, request.stack, *request.ask.memories.items())
                todo.setdefault((prompt, origin), []).append((request, name))
    firsts = [wanted[0] for wanted in todo.values()]
    alone = [[one] for one in firsts if one[1] in one[0].narrowed]
    plan = Plan(prefixes, [one for one in firsts if one[1] not in one[0].narrowed])
    for group in [*in_groups(plan.whole), *alone]:
        for (request, name), done in zip(group, run(model, group), strict=True):
            ready[id(request), name] = done
            plan.has_read((request, name), done)
    for group in in_groups(plan.continued):
        ids = [request.prompts[name].ids for request, name in group]
        starts = [plan.start_of(one) for one in group]
        left = [own[len(beginning) :].tolist() for own, (beginning, _) in zip(ids, starts, strict=True)]
        for (request, name), done in zip(group, model.extend([read for _, read in starts], left), strict=True):
            ready[id(request), name] = done
    for wanted in todo.values():
        for request, name in wanted:
            request.spent.forward_passes += 1  # a shared pass counts for all, so that receipts can be compared
            request.failure = wanted[0][0].failure or request.failure
            ready[id(request), name] = ready[id(wanted[0][0]), wanted[0][1]]
    return ready


class Plan:
    """Which prompts are read whole, and which go on from a beginning that is kept, or that another one reads first."""

    def __init__(self, prefixes: Prefixes, prompts: Sequence[Named]) -> None:
        self.whole: list[Named] = []
        self.continued: list[Named] = []
        self._prefixes = prefixes
        self._beginnings: dict[tuple[int, str], Beginning] = {}
        self._starts: dict[Beginning, Read | None] = {}  # None: somebody is about to read it
        for request, name in prompts:
            own = prefixes.beginning(request.awake[name], request.prompts[name]) if request.is_plain(name) else None
            if own is None:
                self.whole.append((request, name))
                continue
            self._beginnings[id(request), name] = own
            found = prefixes.find(own, len(request.prompts[name]))
            (self.whole if found is None and own not in self._starts else self.continued).append((request, name))
            self._starts[own] = self._starts.get(own) or found

    def has_read(self, one: Named, done: Prefilled) -> None:
        beginning = self._beginnings.get((id(one[0]), one[1]))
        if beginning is not None:
            self._starts[beginning] = read = cut(done, len(beginning))
            self._prefixes.keep(beginning, read)

    def start_of(self, one: Named) -> tuple[Beginning, Read]:
        beginning = self._beginnings[id(one[0]), one[1]]
        read = self._starts[beginning]
        assert read is not None, "whoever reads it first has done so"
        return beginning, read


def in_groups(prompts: Sequence[Named]) -> Iterator[list[Named]]:
    for numbers in grouped([request.prompts[name] for request, name in prompts]):
        yield [prompts[number] for number in numbers]


def run(model: Model, group: Sequence[Named]) -> list[Prefilled]:
    prompts = [request.prompts[name] for request, name in group]
    request, name = group[0]
    if name in request.narrowed and model.narrowing is not None:  # alone
        seen = request.narrowed[name]
        with model.narrowing.dropped(seen):
            (one,) = model.prefill(prompts)
        return [replace(one, pairs=spread(one.pairs, seen))]
    scales = model.tap.scales([factors_of(request, name) for request, name in group])
    with Inside(model, group).prompts([len(prompt) for prompt in prompts]) as early:
        done = model.prefill(prompts, scales)
    return [replace(one, early=early.get(row, {})) for row, one in enumerate(done)]


def factors_of(request: Request, name: str) -> Tensor | None:
    return request.factors if name == MAIN else None
