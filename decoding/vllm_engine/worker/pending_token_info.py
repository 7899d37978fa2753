"""Information about the tokens of a step whose values the device may still compute.

Under asynchronous scheduling the next step starts before this one's values are known. So a step copies them to the host
without waiting, and `resolve` reads them together with the sampled tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from decoding.pipeline.logits_hooks import CHANGED, HookResults
from decoding.vllm_engine.worker.step_rows import TokenInfo, record_failure


class PendingTokenInfo:
    """The information about the tokens of one step.

    Args:
        token_info: Information that the host knows already.
    """

    def __init__(self, token_info: TokenInfo) -> None:
        self._token_info = token_info
        self._results: HookResults | None = None
        self._request_ids: Sequence[str] = ()
        self._tensors: list[Tensor] = []
        self._names: list[tuple[str, str, Sequence[str] | None]] = []  # request id, name and texts of each tensor
        self._copy: HostCopy | None = None

    def add_results(self, results: HookResults, request_ids: Sequence[str]) -> None:
        """Add the results of the `logits` hooks.

        Args:
            results: The results of [n] requests.
            request_ids: Ids of their main rows.
        """
        self._results, self._request_ids = results, request_ids

    def add_value(self, request_id: str, name: str, value: Tensor, texts: Sequence[str] | None = None) -> None:
        """Add a value of a request's token.

        Args:
            request_id: Id of the main row.
            name: Name of the value in the information about the token.
            value: [1] number, or one number for each text.
            texts: Texts that the numbers are about.
        """
        self._tensors.append(value)
        self._names.append((request_id, name, texts))

    def start_copy(self) -> None:
        """Start to copy all values to the host, without waiting for them."""
        if self._results is not None:
            self._copy = HostCopy(torch.cat([self._results.status.float(), *(each.float() for each in self._tensors)]))

    @torch.inference_mode()
    def resolve(self) -> TokenInfo:
        """Wait for the values. vLLM may call this method in another thread than that of the step.

        Returns:
            The information about the tokens of the step.
        """
        if self._copy is not None and self._results is not None:
            try:
                self._fill_in(self._copy.read(), self._results)
            except Exception as error:  # the engine core would stop
                for request_id in self._request_ids:
                    record_failure(self._token_info, request_id, error, "token_info_failed")
        return self._token_info

    def _fill_in(self, values: Sequence[float], results: HookResults) -> None:
        """Add the values of all tensors in a row to the information."""
        failed: set[str] = set()
        for number, request_id in enumerate(self._request_ids):
            failure = results.get_failure(number, int(values[number]))
            if failure is None:
                self._token_info.setdefault(request_id, {})["changed"] = values[number] == CHANGED
            else:
                record_failure(self._token_info, request_id, failure, "logits_hook_failed")
                failed.add(request_id)
        start = len(self._request_ids)
        for (request_id, name, texts), tensor in zip(self._names, self._tensors, strict=True):
            own, start = values[start : start + len(tensor)], start + len(tensor)
            if request_id not in failed:
                value: Any = own[0] if texts is None else dict(zip(texts, own, strict=True))
                self._token_info[request_id][name] = value


class HostCopy:
    """A copy of numbers in the memory of the host, which the device may still write.

    Args:
        numbers: [n] on the device.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)  # into pinned memory
        self._event: Any = None if numbers.device.type == "cpu" else record_event(numbers.device)

    def read(self) -> list[float]:
        """Wait for the copy, and return its numbers. Here a step waits for the device."""
        if self._event is not None:
            self._event.synchronize()
        return self._numbers.tolist()


def record_event(device: torch.device) -> Any:
    """Return an event of the device that follows everything it has been given so far."""
    event = torch.Event(device.type, blocking=True)
    event.record()
    return event
