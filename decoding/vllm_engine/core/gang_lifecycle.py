"""vLLM's scheduler with gangs whose members arrive, end and fail together. `GangScheduler` decides when they run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import structlog
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from decoding.vllm_engine.core.gangs import GangCounters, GangRegistry, VllmRequest
from decoding.vllm_engine.member import Member

log = structlog.get_logger(__name__)

NOT_IN_STEP = "The branches of the request were not decoded in lockstep."


class GangLifecycle(Scheduler):
    """Arrival, end and failure of gangs. vLLM's names are kept where a method overrides one of vLLM's."""

    running: list[VllmRequest]
    waiting: Any
    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gangs = GangRegistry()
        self.counters = GangCounters()

    # Arrival and abort

    def add_request(self, request: VllmRequest) -> None:
        """Queue a request. The members of a gang are queued next to each other once all have arrived."""
        member = Member.from_sampling_params(request.sampling_params)
        if member is None or not member.is_gang_scheduled or request.request_id in self.requests:
            super().add_request(request)
            return
        gang = self.gangs.add(request, member)
        self.requests[request.request_id] = request  # a member can be aborted before the others arrive
        if gang.is_complete:
            for each in gang.members:
                del self.requests[each.request_id]
                super().add_request(each)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> list[VllmRequest]:
        """Finish requests, together with the other members of their gangs.

        Returns:
            The finished requests.
        """
        if request_ids is not None:
            request_ids = self.gangs.expand([request_ids] if isinstance(request_ids, str) else request_ids)
        finished: list[VllmRequest] = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self.gangs.remove(request.request_id)
        return finished

    # Lockstep check, before the model runs

    def _check_lockstep(self, output: Any) -> None:
        """Record on the scheduler output which members would sample a token without their gang. The plan allows none.

        Args:
            output: vLLM's SchedulerOutput.
        """
        sampling: dict[str, list[str]] = {}  # gang id -> request ids
        for request_id in output.num_scheduled_tokens:
            gang = self.gangs.get_gang(request_id)
            if gang is not None and not self.requests[request_id].is_prefill_chunk:
                sampling.setdefault(gang.id, []).append(request_id)
        lone: list[str] = []
        for ids in sampling.values():
            gang = self.gangs.get_gang(ids[0])
            if gang is None or len(ids) < gang.size:
                lone += ids
            else:
                self.counters.tokens += 1
        output.lone_request_ids = lone
        if lone:
            self.counters.violations += len(lone)
            log.error("gang_lockstep_violated", request_ids=lone)

    # End and failure, after the model ran

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        """Process the sampled tokens, and end each gang as a whole.

        Args:
            scheduler_output: vLLM's SchedulerOutput of the step.
            model_runner_output: vLLM's ModelRunnerOutput of the step, with our `token_info`.

        Returns:
            Client index -> EngineCoreOutputs.
        """
        token_info: dict[str, dict[str, Any]] = getattr(model_runner_output, "token_info", {})
        if not (token_info or self.gangs):
            return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[no-any-return]
        failed = {request_id for request_id, info in token_info.items() if "error" in info}
        failed |= self._drop_lone_tokens(scheduler_output, model_runner_output)
        for request_id in failed:
            drop_token(request_id, model_runner_output)
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        ended: list[str] = []
        for client_outputs in outputs.values():
            for output in client_outputs.outputs:
                output.kv_transfer_params = token_info.get(output.request_id)
                if output.finish_reason is not None:
                    ended.append(output.request_id)
        for request_id in ended:
            self._end_gang(request_id, outputs)
        for request_id in failed:
            self._fail_gang(request_id, token_info.get(request_id, {"error": NOT_IN_STEP}), outputs)
        return outputs

    def _drop_lone_tokens(self, scheduler_output: Any, model_runner_output: Any) -> set[str]:
        """Drop the tokens of lone members, which are sampled again.

        Returns:
            Request ids of single-step gangs, which cannot run again and fail.
        """
        failed: set[str] = set()
        for request_id in getattr(scheduler_output, "lone_request_ids", ()):
            gang, request = self.gangs.get_gang(request_id), self.requests.get(request_id)
            if gang is None or request is None:
                continue
            if gang.is_single_step:
                failed.add(request_id)
            elif drop_token(request_id, model_runner_output):
                request.num_computed_tokens -= 1
                self.counters.redone += 1
        return failed

    def _end_gang(self, request_id: str, outputs: dict[int, Any]) -> None:
        """End the other members when one has ended. A branch ends an answer only if it runs out of context."""
        gang = self.gangs.get_gang(request_id)
        if gang is None:
            return
        main = gang.members[0].request_id
        self._finish([main] if main != request_id else [], RequestStatus.FINISHED_LENGTH_CAPPED, outputs)
        others = [each for each in gang.request_ids if each != request_id]
        self._finish(others, RequestStatus.FINISHED_ABORTED, outputs)
        self.gangs.remove(request_id)

    def _fail_gang(self, request_id: str, info: dict[str, Any], outputs: dict[int, Any]) -> None:
        gang = self.gangs.get_gang(request_id)
        self.counters.failed += gang is not None
        self._finish(gang.request_ids if gang else [request_id], RequestStatus.FINISHED_ERROR, outputs, info)

    def _finish(
        self, request_ids: Sequence[str], status: Any, outputs: dict[int, Any], info: dict[str, Any] | None = None
    ) -> None:
        """Finish requests and add an output for each, with the reason of a failure as `info`."""
        for request in super().finish_requests(request_ids, status):
            client_outputs = outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[]))
            client_outputs.outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    events=request.take_events(),
                    kv_transfer_params=info,
                )
            )
            if info is not None:
                self.gangs.remove(request.request_id)


def drop_token(request_id: str, model_runner_output: Any) -> bool:
    """Remove the sampled token of a request from vLLM's ModelRunnerOutput. Return whether there was one."""
    row = model_runner_output.req_id_to_index.get(request_id)
    tokens = model_runner_output.sampled_token_ids
    if row is None or not tokens or not tokens[row]:
        return False
    tokens[row].clear()
    return True
