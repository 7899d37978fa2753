"""vLLM's scheduler with members that come, end and fail together. When they run is another file's concern."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import RequestStatus

from decoding.vllm_engine.counters import Counters
from decoding.vllm_engine.gangs import Gangs, Request
from decoding.vllm_engine.member import Member

log = init_logger(__name__)


class GangKeeper(Scheduler):
    running: list[Request]
    waiting: Any
    max_num_scheduled_tokens: int

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.gangs = Gangs()
        self.counters = Counters()

    def add_request(self, request: Request) -> None:
        member = Member.of(request.sampling_params)
        if member is None or not member.is_bound or request.request_id in self.requests:
            super().add_request(request)
            return
        gang = self.gangs.join(request, member)
        self.requests[request.request_id] = request  # already now, so that it can be aborted
        if gang.is_complete:
            for one in gang.members:
                del self.requests[one.request_id]
                super().add_request(one)

    def finish_requests(self, request_ids: str | Iterable[str] | None, finished_status: Any) -> list[Request]:
        if request_ids is not None:
            named = [request_ids] if isinstance(request_ids, str) else request_ids
            request_ids = self.gangs.together(named)
        finished: list[Request] = super().finish_requests(request_ids, finished_status)
        for request in finished:
            self.gangs.forget(request.request_id)
        return finished

    def _check(self, output: Any) -> None:
        """Note on the output who would draw a token without the rest of the gang: nobody, if all is well."""
        drawing: dict[str, list[str]] = {}
        for request_id in output.num_scheduled_tokens:
            gang = self.gangs.of(request_id)
            if gang is not None and not self.requests[request_id].is_prefill_chunk:
                drawing.setdefault(gang.id, []).append(request_id)
        lone: list[str] = []
        for ids in drawing.values():
            gang = self.gangs.of(ids[0])
            if gang is None or len(ids) < gang.size:
                lone += ids
            else:
                self.counters.tokens += 1
        output.lone = lone
        if lone:
            self.counters.violations += len(lone)
            log.error("Members of a gang would draw a token without the others: %s", lone)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> dict[int, Any]:
        notes: dict[str, dict[str, Any]] = getattr(model_runner_output, "notes", {})
        if not (notes or self.gangs):
            return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[no-any-return]
        failed = {request_id for request_id, note in notes.items() if "failed" in note}
        failed |= self._drop_lone(scheduler_output, model_runner_output)
        for request_id in failed:
            self._drop(request_id, model_runner_output)
        said: dict[int, Any] = super().update_from_output(scheduler_output, model_runner_output)
        ended: list[str] = []
        for outputs in said.values():
            for output in outputs.outputs:
                output.kv_transfer_params = notes.get(output.request_id)
                if output.finish_reason is not None:
                    ended.append(output.request_id)
        for request_id in ended:
            self._take_along(request_id, said)
        for request_id in failed:
            self._fail(request_id, notes.get(request_id, {"failed": "The branches of the ask came apart."}), said)
        return said

    def _drop_lone(self, scheduler_output: Any, model_runner_output: Any) -> set[str]:
        """Lone tokens are drawn again; a gang that had to be whole and was not has failed."""
        failed: set[str] = set()
        for request_id in getattr(scheduler_output, "lone", ()):
            gang, request = self.gangs.of(request_id), self.requests.get(request_id)
            if gang is None or request is None:
                continue
            if gang.whole:
                failed.add(request_id)
            elif self._drop(request_id, model_runner_output):
                request.num_computed_tokens -= 1
                self.counters.redone += 1
        return failed

    def _drop(self, request_id: str, model_runner_output: Any) -> bool:
        """True where there was a token to drop."""
        row = model_runner_output.req_id_to_index.get(request_id)
        tokens = model_runner_output.sampled_token_ids
        if row is None or not tokens or not tokens[row]:
            return False
        tokens[row].clear()
        return True

    def _take_along(self, request_id: str, said: dict[int, Any]) -> None:
        """One member has ended: the others end, too. A branch cannot end an answer but by running out of context."""
        gang = self.gangs.of(request_id)
        if gang is None:
            return
        main = gang.members[0].request_id
        self._end([main] if main != request_id else [], RequestStatus.FINISHED_LENGTH_CAPPED, said)
        self._end([one for one in gang.ids if one != request_id], RequestStatus.FINISHED_ABORTED, said)
        self.gangs.forget(request_id)

    def _fail(self, request_id: str, note: dict[str, Any], said: dict[int, Any]) -> None:
        gang = self.gangs.of(request_id)
        self.counters.failed += gang is not None
        self._end(gang.ids if gang else [request_id], RequestStatus.FINISHED_ERROR, said, note)

    def _end(self, ids: Sequence[str], status: Any, said: dict[int, Any], note: dict[str, Any] | None = None) -> None:
        for request in Scheduler.finish_requests(self, ids, status):
            outputs = said.setdefault(request.client_index, EngineCoreOutputs(outputs=[]))
            outputs.outputs.append(
                EngineCoreOutput(
                    request_id=request.request_id,
                    new_token_ids=[],
                    finish_reason=request.get_finished_reason(),
                    events=request.take_events(),
                    kv_transfer_params=note,
                )
            )
            if note is not None:
                self.gangs.forget(request.request_id)
