"""vLLM's scheduler with gangs: in every step either all members of a gang draw a token or none does.

- A member fills its cache at its own pace, in chunks, with prefix hits, but not beyond its last known token. All last
  tokens of a gang run in the same step, so that chunked prefill, encoder budgets and prompts of different lengths have
  no part in the lockstep: whoever is delayed makes the others hold.
- Preemption is decided before vLLM's loop runs, gang by gang from the newest on, so that the loop finds room for
  everyone and never preempts by itself.
- A gang is shown to the loop when there are slots and KV blocks for all its members.
- A gang that is `whole` runs all its prompts uncut in one step of its own.
- What went wrong all the same is found before the model runs: lone tokens are dropped and drawn again.

vLLM calls the interface of its scheduler not public: the hooks used here are checked by the self-test at start.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.request import RequestStatus

from decoding.vllm_engine.gangs import Gang, Request
from decoding.vllm_engine.keeper import GangKeeper

Unit = tuple[Request, ...]  # the running members of one gang, or one request without branches


class GangScheduler(GangKeeper):
    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._go: set[str] = set()  # members that may run their last known token in this step
        self._granted: dict[str, int] = {}  # tokens that the plan gives to each running request in this step
        self._alone: Gang | None = None  # the gang that has this step for itself

    # One step

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self._go.clear()
        self._granted.clear()
        if not self.gangs:
            self._alone = None
            return super().schedule(throttle_prefills)
        self.counters.steps += 1
        # A gang that could not be run whole in the last step, for all its room, must not keep the others from running.
        self._alone = self._next_whole() if self._alone is None else None
        output = self._schedule_together() if self._alone is None else self._schedule_alone(self._alone)
        self._check(output)
        return output

    def _plan(self) -> int:
        """Who may go in this step, as vLLM's loop over the running requests will find it.

        Returns the KV blocks left for newcomers; none where somebody had to be preempted.
        """
        units, planned, budget = self._units(), 0, self.max_num_scheduled_tokens
        preempted, number = False, 0
        while number < len(units):
            unit = units[number]
            goes = self._is_ready(unit) and budget >= len(unit)
            wanted = self._wanted(unit, goes, budget)
            need = sum(self._blocks(request, tokens) for request, tokens in wanted)
            while need > self._free - planned and number < len(units):
                self._preempt(units.pop())
                preempted = True
            if number == len(units):
                break
            planned += need
            self._granted |= {request.request_id: tokens for request, tokens in wanted}
            budget -= sum(tokens for _, tokens in wanted)
            if goes and self.gangs.of(unit[0].request_id):
                self._go.update(request.request_id for request in self._departing(unit))
            number += 1
        return 0 if preempted else self._free - planned

    def _units(self) -> list[Unit]:
        """The running requests, gangs together."""
        units: dict[str, list[Request]] = {}
        for request in self.running:
            gang = self.gangs.of(request.request_id)
            units.setdefault(gang.id if gang else request.request_id, []).append(request)
        self.running = [request for unit in units.values() for request in unit]
        return [tuple(unit) for unit in units.values()]

    def _is_ready(self, unit: Unit) -> bool:
        """All members run, and stand before their last known token. A request without branches always is."""
        gang = self.gangs.of(unit[0].request_id)
        return gang is None or (len(unit) == gang.size and all(left(request) == 1 for request in unit))

    def _departing(self, unit: Unit) -> Sequence[Request]:
        """Those of a ready gang that draw a token in this step: all. A test withholds one."""
        return unit

    def _wanted(self, unit: Unit, goes: bool, budget: int) -> list[tuple[Request, int]]:
        wanted: list[tuple[Request, int]] = []
        for request in unit:
            tokens = max(min(left(request) if goes else left(request) - 1, budget), 0)
            wanted.append((request, tokens))
            budget -= tokens
        return wanted

    def _preempt(self, unit: Unit) -> None:
        for request in reversed(unit):  # so that the main one is the first in the queue again
            self.running.remove(request)
            super()._preempt_request(request, time.monotonic())
        if self.gangs.of(unit[0].request_id):
            self.counters.preemptions += 1
        else:
            self.counters.others_preempted += 1

    def _preempt_request(self, request: Request, *arguments: Any, **named: Any) -> None:
        """Only vLLM's own loop comes here: by right where no gang is in the engine, and nothing was planned."""
        self.counters.stock_preemptions += len(self.gangs) > 0
        super()._preempt_request(request, *arguments, **named)

    # Admission

    def _next_whole(self) -> Gang | None:
        """The gang at the head of the queue, when it wants a step of its own and can have it."""
        gang = self.gangs.of(self.waiting.peek_request().request_id) if self.waiting else None
        if gang is None or not gang.whole:
            return None
        tokens = sum(request.num_tokens for request in gang.members)
        blocks = sum(self._blocks(request, request.num_tokens) for request in gang.members)
        has_room = (
            gang.size <= self.max_num_active_reqs - len(self.running)
            and tokens <= self.scheduler_config.max_num_batched_tokens
            and blocks + self.kv_cache_manager.watermark_blocks <= self._free
            and self._embeddings(gang) <= self.encoder_cache_manager.num_freeable_slots
            and self._embeddings(gang) <= self.max_num_encoder_input_tokens
        )
        return gang if has_room else None

    def _embeddings(self, gang: Gang) -> int:
        """Of pictures that the gang would have to encode."""
        features = {feature.identifier: feature for request in gang.members for feature in request.mm_features or ()}
        return sum(feature.mm_position.get_num_embeds() for feature in features.values())

    def _schedule_alone(self, gang: Gang) -> Any:
        self.counters.alone += 1
        self._go.update(gang.ids)
        usual, self.max_num_scheduled_tokens = (
            self.max_num_scheduled_tokens,
            self.scheduler_config.max_num_batched_tokens,
        )
        everyone, self.waiting = self.waiting, create_request_queue(self.policy)
        try:
            for _ in gang.members:
                self.waiting.add_request(everyone.pop_request())
            return super().schedule()
        finally:
            self.max_num_scheduled_tokens = usual
            everyone.prepend_requests(reversed(list(self.waiting)))
            self.waiting = everyone

    def _schedule_together(self) -> Any:
        """Run vLLM's loop, which sees of the queue only what may be admitted now."""
        free = self._plan()
        everyone, self.waiting = self.waiting, create_request_queue(self.policy)
        looked_at: list[Request] = []
        try:
            for request in self._admissible(everyone, looked_at, free):
                self.waiting.add_request(request)
            return super().schedule()
        finally:
            running = {id(request) for request in self.running}
            back = [request for request in looked_at if id(request) not in running and not request.is_finished()]
            everyone.prepend_requests(reversed(back))
            self.waiting = everyone

    def _admissible(self, queue: Any, looked_at: list[Request], free: int) -> list[Request]:
        """Takes from the queue what it looks at. First come, first served: what finds no room stops those behind it."""
        shown: list[Request] = []
        slots = self.max_num_active_reqs - len(self.running)
        while queue and free > 0:
            gang = self.gangs.of(queue.peek_request().request_id)
            unit = [queue.pop_request()]
            while queue and gang is not None and self.gangs.of(queue.peek_request().request_id) is gang:
                unit.append(queue.pop_request())
            looked_at += unit
            if self._waits_for_grammar(unit):
                shown += unit if gang is None else ()
                continue
            need = sum(self._blocks(request, request.num_tokens) for request in unit)
            is_full = len(unit) > slots or need + self.kv_cache_manager.watermark_blocks > free
            if is_full or (gang is not None and gang.whole):
                break
            shown += unit
            slots -= len(unit)
            free -= need
        return shown

    def _waits_for_grammar(self, unit: Sequence[Request]) -> bool:
        return any(
            request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            and (request.structured_output_request is None or request.structured_output_request.grammar is None)
            for request in unit
        )

    # Hooks that vLLM's loop calls for each request

    def _reserve_prefill_lookahead(self, request: Request, num_computed_tokens: int, num_new_tokens: int) -> int:
        """The last thing said about how many tokens a request runs in this step."""
        tokens: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        remaining = request.num_tokens_with_spec + request.num_output_placeholders - num_computed_tokens - tokens
        if self._alone is not None:
            return tokens if request.request_id in self._go and remaining == 0 else 0
        if remaining <= 0 and request.request_id not in self._go and self.gangs.of(request.request_id) is not None:
            self.counters.holds += 1
            tokens = max(tokens - 1, 0)
        # What another request leaves of the step's tokens, because its picture cannot be encoded yet, has no KV blocks
        # set aside for it.
        return min(tokens, self._granted.get(request.request_id, tokens))

    def _get_local_prefix_cache_hit(self, request: Request) -> tuple[Any, ...]:
        """A member whose whole prompt is cached but for the last token would have nothing to run until the others come,
        and vLLM admits nobody who runs nothing: one block is left to be run again."""
        blocks, hit, *rest = super()._get_local_prefix_cache_hit(request)
        if hit and hit >= request.num_tokens - 1 and self.gangs.of(request.request_id) is not None:
            hit -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
        return (blocks, hit, *rest)

    # KV blocks

    @property
    def _free(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks()  # type: ignore[no-any-return]

    def _blocks(self, request: Request, tokens: int) -> int:
        """KV blocks that the request needs for so many more tokens. Counted by vLLM, but only where one may be full."""
        computed = request.num_computed_tokens
        if tokens <= 0 or self._is_within_a_block(computed, tokens):
            return 0
        total = computed + tokens
        return self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(  # type: ignore[no-any-return]
            request_id=request.request_id,
            num_tokens=min(total + self.num_lookahead_tokens, self.max_model_len),
            new_computed_blocks=self.kv_cache_manager.empty_kv_cache_blocks.blocks,
            num_encoder_tokens=0,
            total_computed_tokens=computed,
            num_local_computed_tokens=computed,
            num_tokens_main_model=total,
            prefill_end=max(request.num_prompt_tokens, request.num_tokens - 1),
        )

    def _is_within_a_block(self, computed: int, tokens: int) -> bool:
        size = self.block_size
        return (
            len(self.kv_cache_config.kv_cache_groups) == 1 and computed % size > 0 and computed % size + tokens <= size
        )


def left(request: Request) -> int:
    """Known tokens that it has not run yet."""
    return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens  # type: ignore[no-any-return]
