"""The client of a running vLLM: starts it, submits and aborts gangs, and calls its processes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from torch import Tensor

from decoding.base_engine import STOPPED
from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.vllm_engine.core.utility_methods import ABORT_METHOD, REPORT_METHOD
from decoding.vllm_engine.frontend import engine_args
from decoding.vllm_engine.settings import VllmSettings

log = structlog.get_logger(__name__)

STOP_TIMEOUT = 10  # seconds
ABORT_TIMEOUT = 10  # seconds, for the engine core's answer; a step may take a second


@dataclass(frozen=True, slots=True)
class VllmEngineRequest:
    """One request as vLLM takes it."""

    request_id: str
    inputs: Any  # vLLM's EngineInput
    params: Any  # vLLM's SamplingParams


class OutputCollector:
    """The outputs of one engine request, in order.

    It replaces vLLM's RequestOutputCollector, which merges outputs that wait and loses the information about their
    tokens.
    """

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self._outputs: asyncio.Queue[Any] = asyncio.Queue()

    def put(self, output: Any) -> None:
        """Add an output, or the exception that ended the engine. vLLM calls this method."""
        self._outputs.put_nowait(output)

    async def get(self) -> Any:
        """Wait for the next output.

        Returns:
            vLLM's RequestOutput.

        Raises:
            EngineFailed: The engine has stopped.
        """
        output = await self._outputs.get()
        if isinstance(output, Exception):
            raise EngineFailed(STOPPED) from output
        return output

    async def count_rest(self) -> int:
        """Wait for the end of the request, and return the number of tokens that `get` has not returned."""
        count, is_finished = 0, False
        while not is_finished:
            output = await self.get()
            count += len(output.outputs[0].token_ids)
            is_finished = output.finished
        return count


class VllmClient:
    """Client of one running vLLM. All methods run in the event loop that opened it."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._supported_tasks: tuple[Any, ...] = ()
        self._background: set[asyncio.Task[Any]] = set()

    @classmethod
    async def open(cls, settings: VllmSettings, max_model_len: int) -> VllmClient:
        """Start vLLM and wait until the model is loaded.

        Args:
            settings: Settings of the engine.
            max_model_len: Most tokens of prompt and answer together.

        Returns:
            The client.
        """
        engine_args.require_tested_version()
        engine_args.set_environment()
        started: list[Any] = []  # a returned value would live as long as the thread's future
        await asyncio.to_thread(lambda: started.append(start_vllm(settings, max_model_len)))
        client = cls(started.pop())
        client._supported_tasks = await client.llm.get_supported_tasks()
        return client

    @property
    def is_alive(self) -> bool:
        return self.llm is not None and not self.llm.errored

    async def report(self) -> dict[str, Any]:
        """Request the report of the engine core.

        Returns:
            The report: see `core.utility_methods`.

        Raises:
            EngineFailed: The engine core lacks the method, because the plugin is not loaded there.
        """
        try:
            report: dict[str, Any] = await self.llm.engine_core.call_utility_async(REPORT_METHOD)
        except Exception as error:
            raise EngineFailed(f"vLLM's engine core did not load the OnlySeen plugin: {error}") from error
        return report

    async def submit(self, requests: Sequence[VllmEngineRequest]) -> list[OutputCollector]:
        """Submit a gang.

        Args:
            requests: Its members.

        Returns:
            The outputs of each member.

        Raises:
            EngineFailed: The engine has stopped.
            BadRequest: vLLM refuses the request.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        collectors: list[OutputCollector] = []
        self.llm._run_output_handler()
        try:
            for request in requests:
                vllm_request = self.llm.input_processor.process_inputs(
                    request.request_id, request.inputs, request.params, supported_tasks=self._supported_tasks
                )
                self.llm.input_processor.assign_request_id(vllm_request)
                collector = OutputCollector(vllm_request.request_id)
                collectors.append(collector)
                await self.llm._add_request(vllm_request, None, None, 0, collector)
        except EngineDeadError as error:
            raise EngineFailed(STOPPED) from error
        except (VLLMClientError, ValueError) as error:
            self.abort(collectors)
            raise BadRequest(f"vLLM refuses the request: {error}") from error
        except BaseException:
            self.abort(collectors)
            raise
        return collectors

    def abort(self, collectors: Sequence[OutputCollector]) -> None:
        """Abort a gang before the next step. Members that have ended are ignored."""
        if self.is_alive and collectors:
            self.run_in_background(self.llm.abort([each.request_id for each in collectors], internal=True))

    async def abort_and_count_tokens(self, collectors: Sequence[OutputCollector], received: int) -> int:
        """Abort a gang before the next step, and count the tokens that its main row has generated.

        Args:
            collectors: Of its members. The last one is that of the main row.
            received: Generated tokens of the main row that this process has received.

        Returns:
            Generated tokens of the main row, which are as many as the gang's steps. `received` if the engine core does
            not answer.
        """
        llm, request_ids = self.llm, [each.request_id for each in collectors]
        if not request_ids:
            return received
        try:
            async with asyncio.timeout(ABORT_TIMEOUT):
                generated: int | None = await llm.engine_core.call_utility_async(ABORT_METHOD, request_ids)
                return received + await collectors[-1].count_rest() if generated is None else generated
        except Exception as error:  # a count must not fail an answer
            log.warning("abort_not_counted", reason=repr(error))
            return received
        finally:
            with suppress(Exception):
                await llm.abort(request_ids, internal=True)  # frees what vLLM holds in this process

    def free_states(self, handles: Sequence[str]) -> None:
        """Free strategy states next to the model."""
        if self.is_alive:
            self.run_in_background(self.llm.collective_rpc("onlyseen_free_states", args=(list(handles),)))

    async def load_vectors(self, handle: str, vectors: Tensor) -> None:
        """Copy [layers, width] steering vectors next to the model, under a handle."""
        await self.llm.collective_rpc(
            "onlyseen_load_vectors", args=(handle, vectors.numpy().tobytes(), vectors.shape[0])
        )

    async def close(self) -> None:
        """Stop vLLM. Requests that still run fail with `EngineFailed`."""
        await asyncio.gather(*self._background, return_exceptions=True)
        llm, self.llm = self.llm, None
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        llm.output_processor.propagate_error(EngineFailed(STOPPED))
        await asyncio.to_thread(llm.shutdown, STOP_TIMEOUT)
        await asyncio.sleep(0)  # vLLM closes its sockets in the event loop
        await asyncio.to_thread(llm.engine_core.resources.ctx.destroy, 0)  # vLLM leaves its context open

    def run_in_background(self, call: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a call as a task, which `close` waits for."""
        task = asyncio.get_running_loop().create_task(call)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def start_vllm(settings: VllmSettings, max_model_len: int) -> Any:
    """Start vLLM's AsyncLLM. The call returns when the model is loaded.

    Args:
        settings: Settings of the engine.
        max_model_len: Most tokens of prompt and answer together.

    Returns:
        The AsyncLLM.

    Raises:
        Unsupported: vLLM cannot be imported.
    """
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise Unsupported(f"vLLM does not load: {error}") from error
    args = engine_args.build_engine_args(settings, max_model_len, current_platform.is_cpu())
    config = AsyncEngineArgs(**args).create_engine_config()
    engine_args.check_config(config, settings.async_scheduling)
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
