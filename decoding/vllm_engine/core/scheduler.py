"""vLLM's scheduler with gangs: in every step either all members of a gang sample a token or none does.

- A member fills its KV cache at its own pace, in chunks and with prefix hits, but stops before its last known token.
  The last tokens of all members run in the same step. Chunked prefill, encoder budgets and prompts of different lengths
  then have no part in the lockstep: a member that is delayed makes the others hold.
- Preemption is decided before vLLM's loop runs, gang by gang from the newest on. The loop then finds room for every
  running request and never preempts.
- vLLM's loop receives a waiting gang only when rows and KV blocks are free for all its members.
- A single-step gang (a probe) runs all its prompts uncut in a step of its own.
- Violations are found before the model runs. Tokens of lone members are dropped and sampled again.

`GangAsyncScheduler` in `async_scheduler.py` keeps the same rules where vLLM plans a step before the tokens of the last
one are known.

vLLM does not call the interface of its scheduler public. The self-test at start checks the methods that are used here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from vllm.v1.core.sched.request_queue import create_request_queue
from vllm.v1.request import RequestStatus

from decoding.vllm_engine.core.gang_lifecycle import GangLifecycle
from decoding.vllm_engine.core.gangs import Gang, VllmRequest

RequestGroup = tuple[VllmRequest, ...]  # the running members of one gang, or one request without branches


class GangScheduler(GangLifecycle):
    """Plans each step for gangs and lets vLLM's own loop carry the plan out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._released: set[str] = set()  # members that may run their last known token in this step
        self._planned_tokens: dict[str, int] = {}  # tokens that the plan gives each running request in this step
        self._single_step_gang: Gang | None = None  # the only gang that this step runs
        self._has_preempted = False  # whether this step takes requests out of the batch

    # One step

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Plan the step, run vLLM's loop and check the result.

        Returns:
            vLLM's SchedulerOutput.
        """
        self._released.clear()
        self._planned_tokens.clear()
        if not self.gangs:
            self._single_step_gang = None
            return super().schedule(throttle_prefills)
        self.counters.steps += 1
        self._has_preempted = self._preempt_lone_gangs()
        # A single-step gang that did not run although there was room must not keep the other requests from running.
        gang = self._single_step_gang = self._find_single_step_gang() if self._single_step_gang is None else None
        output = self._schedule_together() if gang is None else self._schedule_alone(gang)
        self._check_lockstep(output)
        return output

    def _plan(self) -> int:
        """Plan the running requests in the order of vLLM's loop, and preempt from the newest on if blocks are short.

        Returns:
            KV blocks left for waiting requests; 0 after a preemption.
        """
        groups, planned, budget = self._group_requests(), 0, self.max_num_scheduled_tokens
        number = 0
        while number < len(groups):
            group = groups[number]
            is_released = self._is_ready(group) and budget >= len(group)
            wanted = self._count_wanted_tokens(group, is_released, budget)
            need = sum(self._count_blocks(request, tokens) for request, tokens in wanted)
            while need > self._num_free_blocks - planned and number < len(groups):
                self._preempt(groups.pop())
                self._has_preempted = True
            if number == len(groups):
                break
            planned += need
            self._planned_tokens |= {request.request_id: tokens for request, tokens in wanted}
            budget -= sum(tokens for _, tokens in wanted)
            if is_released and self.gangs.get_gang(group[0].request_id):
                self._released.update(request.request_id for request in self._find_members_to_release(group))
            number += 1
        return 0 if self._has_preempted else self._num_free_blocks - planned

    def _preempt_lone_gangs(self) -> bool:
        """Preempt gangs whose members left the lockstep in an earlier step. Here their tokens were dropped instead.

        Returns:
            Whether a gang was preempted.
        """
        return False

    def _group_requests(self) -> list[RequestGroup]:
        """Group the running requests by gang, in the order in which they were scheduled first."""
        groups: dict[str, list[VllmRequest]] = {}
        for request in self.running:
            gang = self.gangs.get_gang(request.request_id)
            groups.setdefault(gang.id if gang else request.request_id, []).append(request)
        self.running = [request for group in groups.values() for request in group]
        return [tuple(group) for group in groups.values()]

    def _is_ready(self, group: RequestGroup) -> bool:
        """Return whether all members run and are before their last known token. True without a gang.

        vLLM schedules no request whose last token is in flight, so that the other members hold, too.
        """
        gang = self.gangs.get_gang(group[0].request_id)
        return gang is None or (
            len(group) == gang.size
            and all(count_unrun_tokens(request) == 1 and not has_last_token_in_flight(request) for request in group)
        )

    def _find_members_to_release(self, group: RequestGroup) -> Sequence[VllmRequest]:
        """Return the members of a ready gang that sample a token in this step: all. A test withholds one."""
        return group

    def _count_wanted_tokens(
        self, group: RequestGroup, is_released: bool, budget: int
    ) -> list[tuple[VllmRequest, int]]:
        """Return the tokens that each request runs in this step, within the budget."""
        wanted: list[tuple[VllmRequest, int]] = []
        for request in group:
            tokens = max(min(count_unrun_tokens(request) - (not is_released), budget), 0)
            tokens = 0 if has_last_token_in_flight(request) else tokens
            wanted.append((request, tokens))
            budget -= tokens
        return wanted

    def _preempt(self, group: RequestGroup, *, drops_output: bool = False) -> None:
        """Preempt running requests. Tokens of theirs that are not known yet are delivered unless they are dropped."""
        for request in reversed(group):  # puts the main request first in the queue again
            self.running.remove(request)
            super()._preempt_request(request, time.monotonic(), drop_stale_output=drops_output)
        if self.gangs.get_gang(group[0].request_id):
            self.counters.preemptions += 1
        else:
            self.counters.others_preempted += 1

    def _preempt_request(self, request: VllmRequest, *args: Any, **kwargs: Any) -> None:
        """Count preemptions by vLLM's own loop. They are expected only while no gang is in the engine."""
        self.counters.stock_preemptions += len(self.gangs) > 0
        super()._preempt_request(request, *args, **kwargs)

    # Admission

    def _find_single_step_gang(self) -> Gang | None:
        """Return the gang at the head of the queue if it needs a step of its own and has room for it."""
        gang = self.gangs.get_gang(self.waiting.peek_request().request_id) if self.waiting else None
        if gang is None or not gang.is_single_step:
            return None
        tokens = sum(request.num_tokens for request in gang.members)
        blocks = sum(self._count_blocks(request, request.num_tokens) for request in gang.members)
        has_room = (
            gang.size <= self.max_num_active_reqs - len(self.running)
            and tokens <= self.scheduler_config.max_num_batched_tokens
            and blocks + self.kv_cache_manager.watermark_blocks <= self._num_free_blocks
            and self._count_image_embeddings(gang) <= self.encoder_cache_manager.num_freeable_slots
            and self._count_image_embeddings(gang) <= self.max_num_encoder_input_tokens
        )
        return gang if has_room else None

    def _count_image_embeddings(self, gang: Gang) -> int:
        """Count the embeddings of the images that the gang would encode."""
        features = {feature.identifier: feature for request in gang.members for feature in request.mm_features or ()}
        return sum(feature.mm_position.get_num_embeds() for feature in features.values())

    def _schedule_alone(self, gang: Gang) -> Any:
        """Run vLLM's loop for one gang only, with the token budget of a whole batch."""
        self.counters.alone += 1
        self._released.update(gang.request_ids)
        usual_budget = self.max_num_scheduled_tokens
        self.max_num_scheduled_tokens = self.scheduler_config.max_num_batched_tokens
        whole_queue, self.waiting = self.waiting, create_request_queue(self.policy)
        try:
            for _ in gang.members:
                self.waiting.add_request(whole_queue.pop_request())
            return super().schedule()
        finally:
            self.max_num_scheduled_tokens = usual_budget
            whole_queue.prepend_requests(reversed(list(self.waiting)))
            self.waiting = whole_queue

    def _schedule_together(self) -> Any:
        """Run vLLM's loop on the running requests and on the waiting ones that may run now."""
        free = self._plan()
        whole_queue, self.waiting = self.waiting, create_request_queue(self.policy)
        examined: list[VllmRequest] = []
        try:
            for request in self._select_schedulable(whole_queue, examined, free):
                self.waiting.add_request(request)
            return super().schedule()
        finally:
            running = {id(request) for request in self.running}
            unscheduled = [request for request in examined if id(request) not in running and not request.is_finished()]
            whole_queue.prepend_requests(reversed(unscheduled))
            self.waiting = whole_queue

    def _select_schedulable(self, queue: Any, examined: list[VllmRequest], free: int) -> list[VllmRequest]:
        """Select waiting requests, first come, first served: a gang without room blocks those after it.

        Args:
            queue: vLLM's queue, from which examined requests are removed.
            examined: Receives all examined requests.
            free: KV blocks that the plan leaves.

        Returns:
            Requests that vLLM's loop may schedule.
        """
        schedulable: list[VllmRequest] = []
        free_rows = self.max_num_active_reqs - len(self.running)
        while queue and free > 0:
            gang = self.gangs.get_gang(queue.peek_request().request_id)
            group = [queue.pop_request()]
            while queue and gang is not None and self.gangs.get_gang(queue.peek_request().request_id) is gang:
                group.append(queue.pop_request())
            examined += group
            if self._waits_for_grammar(group) or any(map(waits_for_output, group)):
                schedulable += group if gang is None else ()
                continue
            need = sum(self._count_blocks(request, request.num_tokens) for request in group)
            is_full = len(group) > free_rows or need + self.kv_cache_manager.watermark_blocks > free
            if is_full or (gang is not None and gang.is_single_step):
                break
            schedulable += group
            free_rows -= len(group)
            free -= need
        return schedulable

    def _waits_for_grammar(self, group: Sequence[VllmRequest]) -> bool:
        """Return whether the grammar of a request is still being compiled."""
        return any(
            request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
            and (request.structured_output_request is None or request.structured_output_request.grammar is None)
            for request in group
        )

    # Methods that vLLM's loop calls for each request

    def _reserve_prefill_lookahead(self, request: VllmRequest, num_computed_tokens: int, num_new_tokens: int) -> int:
        """Limit the tokens of a request in this step. vLLM calls this method after all limits of its own.

        Returns:
            Tokens that the request runs.
        """
        tokens: int = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        remaining = request.num_tokens_with_spec + request.num_output_placeholders - num_computed_tokens - tokens
        if self._single_step_gang is not None:
            return tokens if request.request_id in self._released and remaining == 0 else 0
        if (
            remaining <= 0
            and request.request_id not in self._released
            and self.gangs.get_gang(request.request_id) is not None
        ):
            self.counters.holds += 1
            tokens = max(tokens - 1, 0)
        # Another request may leave tokens of the step unused because its image cannot be encoded yet. The plan has
        # reserved no KV blocks for them here.
        return min(tokens, self._planned_tokens.get(request.request_id, tokens))

    def _get_local_prefix_cache_hit(self, request: VllmRequest, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Shorten the prefix hit of a member whose prompt is cached up to its last token, by one block.

        The member would have nothing to run until the others arrive, and vLLM schedules no request that runs nothing.

        Returns:
            The cached blocks, the number of cached tokens, and whatever else vLLM returns.
        """
        blocks, hit, *rest = super()._get_local_prefix_cache_hit(request, *args, **kwargs)
        if hit and hit >= request.num_tokens - 1 and self.gangs.get_gang(request.request_id) is not None:
            hit -= self.block_size
            blocks = self.kv_cache_manager.truncate_computed_blocks(blocks, hit)
        return (blocks, hit, *rest)

    # KV blocks

    @property
    def _num_free_blocks(self) -> int:
        return self.kv_cache_manager.block_pool.get_num_free_blocks()  # type: ignore[no-any-return]

    def _count_blocks(self, request: VllmRequest, tokens: int) -> int:
        """Count the KV blocks that a request needs for more tokens. vLLM is called only where a block may be full.

        Args:
            request: Running or waiting request.
            tokens: Tokens to run.

        Returns:
            New blocks.
        """
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


def count_unrun_tokens(request: VllmRequest) -> int:
    """Count the known tokens of a request that it has not run yet."""
    return request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens  # type: ignore[no-any-return]


def has_last_token_in_flight(request: VllmRequest) -> bool:
    """Return whether a step that is not processed yet samples the last token that a request may have.

    The condition is that of vLLM's loop. It holds under asynchronous scheduling only.
    """
    sampled = request.num_computed_tokens + 2 - request.num_output_placeholders
    return request.num_output_placeholders > 0 and sampled >= request.num_prompt_tokens + request.max_tokens  # type: ignore[no-any-return]


def waits_for_output(request: VllmRequest) -> bool:
    """Return whether a preempted request still receives tokens of earlier steps. vLLM does not resume it before."""
    return request.num_stale_output_tokens > 0 and not request.drop_stale_output
