"""What strategies do inside the model during one pass: which rows' attention is edited, and where is listened early."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

from decoding.ask import MAIN
from decoding.hf_engine.attention import Change, Edit
from decoding.hf_engine.cache import AlignedCache
from decoding.hf_engine.exits import Early
from decoding.hf_engine.hooks import remembered
from decoding.hf_engine.model import Model
from decoding.hf_engine.request import Request
from decoding.strategy import Keys, Strategy, Tensors

Shifts = Mapping[int, tuple[int, int]]  # row -> how many of a pass's keys come before and after those of its prompt


class Alike:
    """Main rows whose attention one call of the hooks can edit: those of requests of one kind."""

    def __init__(self, model: Model, rows: Sequence[int], requests: Sequence[Request]) -> None:
        self.rows = rows
        self.requests = requests
        self.layers = model.layers
        self.place = consecutive(rows, model.device)
        self.stack: list[tuple[Strategy, Tensors]] = [  # innermost first
            (strategy, remembered(strategy, requests))
            for strategy in reversed(requests[0].ask.stack)
            if "attend" in strategy.hooks()
        ]

    def edit(self, last: Mapping[int, int], shifts: Shifts) -> Edit:
        device = self.place.device if isinstance(self.place, Tensor) else None
        numbered = zip(self.rows, self.requests, strict=True)
        pictures = torch.stack([pad(request.pictures, shifts[row], value=-1) for row, request in numbered])
        newest = torch.tensor([last[row] for row in self.rows], device=device)
        return Edit(self.place, newest, self.change(pictures))

    def change(self, pictures: Tensor) -> Change:
        """`pictures`: [rows, keys], as in `Keys`. A strategy that raises fails its requests, not the pass."""

        def change(layer: int, scores: Tensor) -> Tensor:
            keys, edited = Keys(pictures.to(scores.device), layer, self.layers), scores
            try:
                for strategy, memory in self.stack:
                    edited = strategy.attend(edited, keys, memory)
            except Exception as error:
                for request in self.requests:
                    request.failure = error
                return scores
            return edited

        return change


class Inside:
    """The rows of a pass, as requests and prompt names; strategies act on the main ones."""

    def __init__(self, model: Model, rows: Sequence[tuple[Request, str]]) -> None:
        self.model = model
        self._mains = {number: request for number, (request, name) in enumerate(rows) if name == MAIN}
        self._narrowed = {
            number: request.narrowed[name] for number, (request, name) in enumerate(rows) if name in request.narrowed
        }
        self._rows = len(rows)
        self._exits = {number: request.exits for number, request in self._mains.items() if request.exits}
        kinds: dict[object, list[int]] = defaultdict(list)
        for number, request in self._mains.items():
            if request.attends:
                kinds[request.kind].append(number)
        self._alike = [Alike(model, numbers, [self._mains[n] for n in numbers]) for numbers in kinds.values()]

    @contextmanager
    def prompts(self, lengths: Sequence[int]) -> Iterator[Early]:
        """Around a pass over right-padded prompts. What is heard early is there when the block ends."""
        last = {row: length - 1 for row, length in enumerate(lengths)}
        shifts = {row: (0, max(lengths) - length) for row, length in enumerate(lengths)}
        with self._acting(last, shifts) as early:
            yield early

    @contextmanager
    def step(self, cache: AlignedCache) -> Iterator[None]:
        """Around a pass over one token per row. What is heard early is left with the requests."""
        if not (self._alike or self._exits or self._narrowed):
            yield
            return
        columns = sum(cache.around(0, 0))
        hidden = torch.zeros(self.model.layers, self._rows, columns, dtype=torch.bool, device=self.model.device)
        for row, seen in self._narrowed.items():
            before, after = cache.around(row, seen.shape[1])
            hidden[:, row, before : columns - after] = ~seen
        shifts = {row: cache.around(row, len(request.pictures)) for row, request in self._mains.items()}
        with self._acting(dict.fromkeys(self._mains, 0), shifts, hidden if self._narrowed else None) as early:
            yield
        for row, heard in early.items():
            self._mains[row].early = heard

    @contextmanager
    def _acting(self, last: Mapping[int, int], shifts: Shifts, hidden: Tensor | None = None) -> Iterator[Early]:
        edits = [alike.edit(last, shifts) for alike in self._alike]
        with self.model.attention.edited_by(edits, hidden), self.model.exits.listened(self._exits, last) as early:
            yield early


def consecutive(rows: Sequence[int], device: torch.device) -> slice | Tensor:
    """A slice where the rows are evenly spaced, so that their keys and values are looked at in place."""
    stride = rows[1] - rows[0] if len(rows) > 1 else 1
    even = range(rows[0], rows[-1] + 1, stride)
    return slice(even.start, even.stop, stride) if list(even) == list(rows) else torch.tensor(rows, device=device)
