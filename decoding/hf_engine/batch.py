"""The running batch: every row of every request, extended by one token a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.answer import Token
from decoding.ask import MAIN
from decoding.hf_engine import threads
from decoding.hf_engine.dormant import Dormitory
from decoding.hf_engine.heads import Scales
from decoding.hf_engine.hooks import Failed, Mixer, Rows, sayable, waking
from decoding.hf_engine.inside import Inside
from decoding.hf_engine.model import Model
from decoding.hf_engine.prefill import Ready, factors_of
from decoding.hf_engine.request import Request
from decoding.hf_engine.sampler import choose

Said = list[tuple[Request, Token | Exception]]


@dataclass(slots=True)
class Row:
    """One prompt of a request. Its number in the batch is its number in the cache."""

    request: Request
    name: str
    position: int  # of the token that it reads next


class Batch:
    def __init__(self, model: Model) -> None:
        self.model = model
        self.cache = model.new_cache()
        self.dormitory = Dormitory(model)
        self.rows: list[Row] = []
        self._scales: Scales | None = None  # of the head outputs of every row
        self._inside = Inside(model, [])
        self._mixer = Mixer()
        self._tokens = torch.empty(0, dtype=torch.long, device=model.device)  # [rows] read by the next step

    @property
    def requests(self) -> list[Request]:
        return list({id(row.request): row.request for row in self.rows}.values())

    def join(self, requests: Sequence[Request], ready: Ready) -> Said:
        """Add the rows of new requests, and say their first tokens."""
        base = len(self.rows)
        for request in requests:
            self.dormitory.admit(request)
            for name in request.awake:
                self.cache.join(ready[id(request), name].pairs)
                self.rows.append(Row(request, name, ready[id(request), name].position))
            request.early = ready[id(request), MAIN].early
            request.prompts = {}  # read: many pixels, and the answer may be long
        logits = torch.stack([ready[id(row.request), row.name].logits for row in self.rows[base:]])
        self._tokens = torch.cat([self._tokens, self._tokens.new_zeros(len(self.rows) - base)])
        self._regroup()
        return self._say([request for request in requests if not request.ask.choices], logits, base) + [
            (request, self._weigh(request, logits, base)) for request in requests if request.ask.choices
        ]

    def step(self) -> Said:
        """One token for every request."""
        with threads.limited(self.model.step_threads):
            with self._inside.step(self.cache):
                logits = self.model.decode(self._tokens, [row.position for row in self.rows], self.cache, self._scales)
            for row in self.rows:
                row.position += 1
                row.request.spent.forward_passes += 1
            return self._say(self.requests, logits, base=0)

    def leave(self, requests: Iterable[Request]) -> None:
        """Free the rows of these requests; ones that are not in the batch are passed over."""
        requests = list(requests)
        self.dormitory.leave(requests)
        going = {id(request) for request in requests}
        for number in reversed(range(len(self.rows))):
            if id(self.rows[number].request) in going:
                self.cache.leave(number)
                self.rows[number], self._tokens[number] = self.rows[-1], self._tokens[-1].clone()
                self.rows.pop()
                self._tokens = self._tokens[:-1]
        self._regroup()

    def _say(self, requests: Sequence[Request], logits: Tensor, base: int) -> Said:
        """`logits`: [rows from number `base` on, vocab]."""
        if not requests:
            return []
        places = self._places(base)
        rows = [places[id(request)] for request in requests]
        lawful = sayable(requests, rows, logits)
        scores, failed = self._mixed(requests, rows, lawful)
        chosen = choose(scores, [request.chooser for request in requests])
        raw = lawful[[own[MAIN] for own in rows]]
        changed = scores.argmax(-1) != raw.argmax(-1)
        readers = [(base + row, number) for number, own in enumerate(rows) for row in own.values()]
        reading, of = torch.tensor(readers, device=chosen.device).unbind(1)
        self._tokens[reading] = chosen[of]
        said: Said = []
        for number, (token, moved) in enumerate(torch.stack([chosen, changed.to(chosen.dtype)], 1).tolist()):
            request, own = requests[number], rows[number]
            self.dormitory.hear(request, token)
            if number in failed:
                said.append((request, failed[number]))
                continue
            try:
                request.remember(raw[number])
                by_name = {name: logits[row] for name, row in own.items()} if request.ask.compare else {}
                said.append((request, request.say(token, scores[number], by_name, bool(moved))))
            except Exception as error:  # its digest's fault, not the others'
                said.append((request, error))
        return said

    def _weigh(self, request: Request, logits: Tensor, base: int) -> Token | Exception:
        own = self._places(base)[id(request)]
        scores, failed = self._mixed([request], [own], logits)
        changed = int(scores[0].argmax()) != int(logits[own[MAIN]].argmax())
        return failed[0] if failed else request.weigh(scores[0], changed)

    def _mixed(self, requests: Sequence[Request], rows: Sequence[Rows], logits: Tensor) -> tuple[Tensor, Failed]:
        """The scores of the requests, with the rows of those branches that this step wakes."""
        wanted, failed = waking(requests, rows, logits)
        if wanted:
            woken = self.dormitory.wake([(requests[number], names) for number, names in wanted.items()])
            rows, more = list(rows), [logits]
            for number, heard in zip(wanted, woken, strict=True):
                base = sum(map(len, more))
                rows[number] = {**rows[number], **{name: base + place for place, name in enumerate(heard)}}
                more.append(torch.stack(list(heard.values())))
            logits = torch.cat(more)
        scores, others = self._mixer.mix(requests, rows, logits)
        return scores, {**others, **failed}

    def _places(self, base: int) -> dict[int, Rows]:
        places: dict[int, dict[str, int]] = {}
        for number, row in enumerate(self.rows[base:]):
            places.setdefault(id(row.request), {})[row.name] = number
        return dict(places)

    def _regroup(self) -> None:
        """What is done inside the batch as it now stands: what a request asks for acts on its main row."""
        self._inside = Inside(self.model, [(row.request, row.name) for row in self.rows])
        self._mixer = Mixer()
        self._scales = self.model.tap.scales([factors_of(row.request, row.name) for row in self.rows])
