"""`GangScheduler` under asynchronous scheduling: a step is planned before the tokens of the last one are known.

Placeholders stand for the tokens in flight, so that the members of a gang are ready together as before. vLLM drops what
a step computes for an answer that has ended meanwhile.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from decoding.vllm_engine.core.scheduler import GangScheduler


class GangAsyncScheduler(GangScheduler, AsyncScheduler):
    """Plans each step for gangs while the last one runs.

    The token of a lone member cannot be dropped in its step, because the next one may read it on the device. So the
    next call of `schedule` preempts the whole gang, and vLLM drops the tokens in flight. They are sampled again after
    the gang's cache has been computed anew.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lone_request_ids: set[str] = set()  # of the last step

    def _check_lockstep(self, output: Any) -> None:
        super()._check_lockstep(output)
        self._lone_request_ids.update(output.lone_request_ids)

    def _preempt_lone_gangs(self) -> bool:
        """Preempt the gangs whose members left the lockstep in the last step.

        All earlier steps are processed by now, so that only the tokens of the last one are dropped.

        Returns:
            Whether a gang was preempted.
        """
        gangs = {id(gang): gang for each in self._lone_request_ids if (gang := self.gangs.get_gang(each)) is not None}
        has_preempted = False
        for gang in gangs.values():
            if gang.is_single_step:  # it cannot run again, and fails
                continue
            lone = self._lone_request_ids.intersection(gang.request_ids)
            running = {id(request) for request in self.running}
            group = tuple(request for request in gang.members if id(request) in running)
            if group:
                self._preempt(group, drops_output=True)
                self.counters.redone += len(lone)
                has_preempted = True
        self._lone_request_ids.clear()
        return has_preempted

    def _drop_lone_tokens(self, scheduler_output: Any, _: Any) -> set[str]:
        """Find the single-step gangs with lone members. vLLM drops the tokens of the others.

        Returns:
            Request ids of single-step gangs, which cannot run again and fail.
        """
        lone = ((each, self.gangs.get_gang(each)) for each in getattr(scheduler_output, "lone_request_ids", ()))
        return {request_id for request_id, gang in lone if gang is not None and gang.is_single_step}
