"""The worker thread, which runs the model: it prefills scheduled requests, steps the batch and delivers tokens."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from decoding.base_engine import STOPPED, run_captured
from decoding.errors import EngineFailed, OnlySeenError, to_public_error
from decoding.hf_engine.batch import Batch, StepOutputs
from decoding.hf_engine.kv_cache.prefix_cache import PrefixCache
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.prefill import prefill_requests
from decoding.hf_engine.probe import EncodedProbe, run_probes
from decoding.hf_engine.request import RequestHandle, RequestStatus, call_in_loop
from decoding.hf_engine.scheduler import Scheduler
from decoding.hf_engine.settings import HFSettings

log = structlog.get_logger(__name__)
IDLE_SECONDS = 1.0  # without work, until the KV buffers are freed; the next request allocates them again


@dataclass(eq=False, slots=True)
class ModelTask:
    """Work other than a generation request that needs the model: a probe, or a function."""

    work: EncodedProbe | Callable[[], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop

    def resolve(self, result: Any, error: OnlySeenError | None) -> None:
        """Pass the result, or the error, to the event loop."""
        call_in_loop(self.loop, self._set_result, result, error)

    def _set_result(self, result: Any, error: OnlySeenError | None) -> None:
        if self.future.done():  # its caller was cancelled
            return
        if error is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(error)


Job = RequestHandle | ModelTask | None  # None: close


class Worker:
    """Runs the model in one thread. Other threads call `submit`, `run_task` and `close` only."""

    def __init__(self, model: Model, settings: HFSettings) -> None:
        self.model = model
        self.max_slots = model.count_cache_slots(settings.cache_bytes)
        self.batch = Batch(model, self.max_slots)
        self.scheduler = Scheduler(settings.max_rows)
        self.prefix_cache = PrefixCache(model.encoder, model.image_token_id, settings.prefix_cache_bytes)
        self._inbox: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._inbox_lock = threading.Lock()
        self._is_closed = False  # no job enters the inbox any more
        self._is_closing = False
        self._tasks: deque[ModelTask] = deque()
        self._thread = threading.Thread(target=self._run, name="onlyseen-model", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def submit(self, handle: RequestHandle) -> None:
        """Queue a request. After the end of the thread this raises `EngineFailed`."""
        self._put(handle)

    async def run_task(self, work: EncodedProbe | Callable[[], Any]) -> Any:
        """Run work in the thread between two steps. A failure of the work raises an `OnlySeenError`.

        Args:
            work: A function, or a probe. Probes that wait share a pass.

        Returns:
            The result of the work.
        """
        loop = asyncio.get_running_loop()
        task = ModelTask(work, loop.create_future(), loop)
        self._put(task)
        return await task.future

    def close(self) -> None:
        """Stop the thread, and wait for its end. Requests that still run fail."""
        self._inbox.put(None)
        self._thread.join()

    def _put(self, job: Job) -> None:
        with self._inbox_lock:
            if self._is_closed:
                raise EngineFailed(STOPPED)
            self._inbox.put(job)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while not self._is_closing:
                    self._receive()
                    self.scheduler.drop_aborted(self.batch)
                    self._step()
        finally:
            self._stop()

    def _step(self) -> None:
        try:
            self._run_next_task()
            if scheduled := self.scheduler.schedule(self.batch):
                self._join(scheduled)
            self.scheduler.preempt(self.batch)
            if self.batch.rows:
                self._deliver(self.batch.step())
        except Exception as error:
            self.batch = Batch(self.model, self.max_slots)  # the old one may be inconsistent
            self._fail([*self.scheduler.running.values()], to_public_error(error, "step_failed"))

    def _stop(self) -> None:
        with self._inbox_lock:
            self._is_closed = True
        while not self._inbox.empty():
            self._dispatch(self._inbox.get())
        for handle in (*self.scheduler.running.values(), *self.scheduler.waiting):
            handle.advance(RequestStatus.FAILED)
            handle.send(EngineFailed(STOPPED))
            handle.leave()
        for task in self._tasks:
            task.resolve(None, EngineFailed(STOPPED))

    def _receive(self) -> None:
        """Take all jobs from the inbox. If there is nothing to do, wait for one."""
        if not (self.batch.rows or self.scheduler.waiting or self._tasks):
            self._dispatch(self._wait())
        while not self._inbox.empty():
            self._dispatch(self._inbox.get())

    def _wait(self) -> Job:
        try:
            return self._inbox.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            self.batch.cache.release_buffers()
            return self._inbox.get()

    def _dispatch(self, job: Job) -> None:
        match job:
            case RequestHandle():
                self.scheduler.waiting.append(job)
            case ModelTask():
                self._tasks.append(job)
            case None:
                self._is_closing = True

    def _run_next_task(self) -> None:
        """Run one task, or the probes of one pass, so that the running requests wait for no more than that."""
        while self._tasks:
            task = self._tasks.popleft()
            if task.future.cancelled():
                continue
            if isinstance(task.work, EncodedProbe):
                self._run_probes([task, *self._take_probes(task.work)])
            else:
                task.resolve(*run_captured(task.work, "probe_failed"))
            return

    def _take_probes(self, first: EncodedProbe) -> list[ModelTask]:
        """Take the probes that wait and can share the pass of another one."""
        taken, probes, remaining = list[ModelTask](), [first], deque[ModelTask]()
        for task in self._tasks:
            if isinstance(task.work, EncodedProbe) and not task.future.cancelled() and task.work.can_join(probes):
                taken.append(task)
                probes.append(task.work)
            else:
                remaining.append(task)
        self._tasks = remaining
        return taken

    def _run_probes(self, tasks: Sequence[ModelTask]) -> None:
        """Run probes in one pass. If that fails, retry one by one to isolate the failing one."""
        probes = [task.work for task in tasks if isinstance(task.work, EncodedProbe)]
        try:
            results: Sequence[Any] = run_probes(probes, self.model)
        except Exception as error:
            if len(tasks) > 1:
                for task in tasks:
                    self._run_probes([task])
                return
            results = [error]
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, Exception):
                task.resolve(None, to_public_error(result, "probe_failed"))
            else:
                task.resolve(result, None)

    def _join(self, handles: Sequence[RequestHandle]) -> None:
        """Prefill requests and add them to the batch. If that fails, retry one by one to isolate the failing one."""
        requests = [handle.request for handle in handles]
        try:
            prefills = prefill_requests(self.model, requests, self.prefix_cache)
        except Exception as error:
            if len(handles) == 1:
                self._fail(handles, to_public_error(error, "prefill_failed"))
                return
            for handle in handles:
                self._join([handle])
            return
        outputs = self.batch.add_requests(requests, prefills)
        for handle in handles:
            handle.advance(RequestStatus.DECODING)
        self._deliver(outputs)

    def _deliver(self, outputs: StepOutputs) -> None:
        finished: list[RequestHandle] = []
        for request, output in outputs:
            handle = self.scheduler.running[id(request)]
            if isinstance(output, Exception):
                self._fail([handle], to_public_error(output, "update_state_failed"))
                continue
            if output.finish is not None:
                handle.advance(RequestStatus.FINISHED)
                finished.append(handle)
            handle.send(output)
        self.scheduler.remove(self.batch, finished)

    def _fail(self, handles: Sequence[RequestHandle], error: OnlySeenError) -> None:
        for handle in handles:
            handle.advance(RequestStatus.FAILED)
            handle.send(error)
        running = [handle for handle in handles if id(handle.request) in self.scheduler.running]
        self.scheduler.remove(self.batch, running)
