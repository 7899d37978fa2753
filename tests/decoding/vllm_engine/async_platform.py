"""A CPU build of vLLM that schedules asynchronously: the order of its work is that of a GPU, without the overlap."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch


class IdleStream:
    """A stream or an event of a device that has always done its work."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __getattr__(self, _: str) -> Any:
        return lambda *_, **__: None


@contextmanager
def allow_async_scheduling() -> Iterator[None]:
    """Let engines that start within the context schedule asynchronously. vLLM's CPU build switches it off.

    Yields:
        Nothing.
    """
    from vllm.v1.engine.core import EngineCoreProc

    with pytest.MonkeyPatch.context() as patch:
        keep_async_scheduling(patch)
        patch.setattr(EngineCoreProc, "run_engine_core", staticmethod(run_async_engine_core))
        yield


def run_async_engine_core(*args: Any, **kwargs: Any) -> None:
    """Run vLLM's engine core, which is a process of its own, and the model runner in it."""
    from vllm.v1.engine.core import EngineCoreProc

    with pytest.MonkeyPatch.context() as patch:
        keep_async_scheduling(patch)
        patch.setattr(torch.cuda, "Event", IdleStream)
        patch.setattr(torch.cuda, "current_stream", IdleStream)
        patch.setattr(torch.cuda, "stream", lambda *_: nullcontext())
        EngineCoreProc.run_engine_core(*args, **kwargs)


def keep_async_scheduling(patch: pytest.MonkeyPatch) -> None:
    """Let vLLM's CPU platform leave the setting as it is."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__  # type: ignore[attr-defined]

    def check_and_update_config(cls: Any, config: Any) -> None:
        is_async = config.scheduler_config.async_scheduling
        check(cls, config)
        config.scheduler_config.async_scheduling = is_async

    patch.setattr(CpuPlatform, "check_and_update_config", classmethod(check_and_update_config))
