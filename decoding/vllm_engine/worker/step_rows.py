"""The rows of one step, and the information about their tokens that goes back to the server process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decoding.errors import StrategyFailed, to_public_error
from decoding.vllm_engine.member import Member

# Request id -> information about the token of this step: "changed", "grounding", "logprob" and "text_logprobs", or
# "error" with "error_code", or "error" with "strategy" and "problem" of a `StrategyFailed`.
TokenInfo = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class StepRows:
    """One row for each engine request of the step. All arrays have the shape [rows] unless stated otherwise."""

    request_ids: Sequence[str]
    members: Mapping[int, Member]  # row -> member; rows of other requests are absent
    token_starts: NDArray[np.integer]  # [rows + 1] where each row's tokens begin among the tokens of the step
    num_computed_tokens: NDArray[np.integer]  # tokens in the KV cache before the step
    num_generated_tokens: NDArray[np.integer]  # tokens of the answer so far
    token_ids: NDArray[np.integer]  # [rows, max_model_len] tokens of prompt and answer
    num_tokens: NDArray[np.integer]  # of each row of `token_ids`
    is_sampling: NDArray[np.bool_]  # whether the row's last token runs, so that a new token is sampled

    @property
    def layout(self) -> tuple[object, ...]:
        """Equal for steps in which the same rows are in the same places and sample tokens."""
        return (tuple(self.request_ids), self.is_sampling.tobytes())


def record_failure(token_info: TokenInfo, request_id: str, error: Exception, event: str) -> None:
    """Fail one request.

    Args:
        token_info: Receives the error.
        request_id: Request of the main row.
        error: Exception of a hook, which is logged unless the client caused it.
        event: Log event.
    """
    failure = to_public_error(error, event)
    info = token_info.setdefault(request_id, {})
    info["error"] = failure.message
    if failure.code is not None:
        info["error_code"] = failure.code
    if isinstance(failure, StrategyFailed):
        info["strategy"], info["problem"] = failure.strategy, failure.problem
