"""vLLM's output of a step with our information about its tokens."""

from __future__ import annotations

from typing import Any

from vllm.v1.outputs import AsyncModelRunnerOutput

from decoding.vllm_engine.worker.pending_token_info import PendingTokenInfo


class OutputWithTokenInfo(AsyncModelRunnerOutput):
    """An output whose tokens the device may still compute. vLLM reads it while the next step runs.

    Args:
        output: vLLM's output.
        info: The information about its tokens.
    """

    def __init__(self, output: AsyncModelRunnerOutput, info: PendingTokenInfo) -> None:
        self._output = output
        self._info = info

    def get_output(self) -> Any:
        """Wait for the tokens.

        Returns:
            vLLM's ModelRunnerOutput, with our `token_info`.
        """
        output: Any = self._output.get_output()
        output.token_info = self._info.resolve()
        return output


def add_token_info(output: Any, info: PendingTokenInfo) -> Any:
    """Add the information about the tokens of a step to vLLM's output.

    Args:
        output: vLLM's ModelRunnerOutput, or its AsyncModelRunnerOutput under asynchronous scheduling.
        info: The information.

    Returns:
        The output that takes its place.
    """
    if isinstance(output, AsyncModelRunnerOutput):
        return OutputWithTokenInfo(output, info)
    output.token_info = info.resolve()
    return output
