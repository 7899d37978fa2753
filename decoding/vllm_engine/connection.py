"""The line to vLLM: starts it, asks what is in place there, puts gangs in and takes them out."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from decoding.errors import BadRequest, EngineFailed, Unsupported
from decoding.vllm_engine import configuration, versions
from decoding.vllm_engine.core import REPORT
from decoding.vllm_engine.settings import VllmSettings

GONE = "The engine has stopped."
SECONDS_TO_STOP = 10


class Connection:
    """Of one running vLLM. Everything here happens in the event loop that opened it."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm
        self._tasks: tuple[Any, ...] = ()
        self._leaving: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, settings: VllmSettings, context: int) -> Connection:
        """Start vLLM and wait until the model is loaded.

        Raises:
            Unsupported: this vLLM, or what it was told from elsewhere, cannot keep gangs together.
        """
        versions.installed()
        configuration.prepare_environment()
        started: list[Any] = []  # not returned by the thread, whose future would keep it for good
        await asyncio.to_thread(lambda: started.append(start(settings, context)))
        connection = cls(started.pop())
        connection._tasks = await connection.llm.get_supported_tasks()
        return connection

    @property
    def is_alive(self) -> bool:
        return self.llm is not None and not self.llm.errored

    async def report(self) -> dict[str, Any]:
        """What the engine core says of itself.

        Raises:
            EngineFailed: it does not know our question: the plugin is not loaded there.
        """
        try:
            told: dict[str, Any] = await self.llm.engine_core.call_utility_async(REPORT)
        except Exception as error:
            raise EngineFailed(f"vLLM's engine core did not load the OnlySeen plugin: {error}") from error
        return told

    async def submit(self, requests: Sequence[tuple[str, Any, Any]]) -> list[Any]:
        """Put a gang in: request id, prompt and sampling parameters of each member. Returns an outbox for each.

        Raises:
            EngineFailed: vLLM is gone.
            BadRequest: vLLM does not take it as it stands.
        """
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        from decoding.vllm_engine.outbox import Outbox

        boxes: list[Any] = []
        self.llm._run_output_handler()
        try:
            for name, prompt, params in requests:
                request = self.llm.input_processor.process_inputs(name, prompt, params, supported_tasks=self._tasks)
                self.llm.input_processor.assign_request_id(request)
                box = Outbox(request.request_id, params.output_kind)
                boxes.append(box)
                await self.llm._add_request(request, None, None, 0, box)
        except EngineDeadError as error:
            raise EngineFailed(GONE) from error
        except (VLLMClientError, ValueError) as error:
            self.leave(boxes)
            raise BadRequest(f"vLLM refuses the request: {error}") from error
        except BaseException:
            self.leave(boxes)
            raise
        return boxes

    def leave(self, boxes: Sequence[Any]) -> None:
        """Take a gang out before the next step. Members that have ended are passed over."""
        if not self.is_alive or not boxes:
            return
        task = asyncio.get_running_loop().create_task(self.llm.abort([box.request_id for box in boxes], internal=True))
        self._leaving.add(task)
        task.add_done_callback(self._leaving.discard)

    async def rpc(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of our worker extension on every worker."""
        return await self.llm.collective_rpc(method, args=arguments)  # type: ignore[no-any-return]

    async def close(self) -> None:
        await asyncio.gather(*self._leaving, return_exceptions=True)
        llm, self.llm = self.llm, None
        if llm.output_handler is not None:
            llm.output_handler.cancel()
        await asyncio.to_thread(llm.shutdown, SECONDS_TO_STOP)
        await asyncio.sleep(0)  # vLLM closes its sockets in the loop
        await asyncio.to_thread(llm.engine_core.resources.ctx.destroy, 0)  # which it leaves open


def start(settings: VllmSettings, context: int) -> Any:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise Unsupported(f"vLLM does not load: {error}") from error
    wanted = configuration.arguments(settings, context, current_platform.is_cpu())
    config = AsyncEngineArgs(**wanted).create_engine_config()
    configuration.check(config)
    return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
