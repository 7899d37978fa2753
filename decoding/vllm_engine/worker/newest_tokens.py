"""The newest tokens of answers, on the device. Under asynchronous scheduling the host does not know them yet.

vLLM's host then has a placeholder for each token that the row has sampled since it joined the batch. A row that leaves
the batch, as after a preemption, comes back with all its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decoding.errors import EngineFailed
from decoding.pipeline.composition import copy_numbers

PLACEHOLDER = -1  # vLLM's id of a token that the host does not know
NO_TOKEN = -2  # before the answer, and before a sequence that is shorter than others


class NewestTokens:
    """The newest tokens of some requests, as far as the last step has sampled them."""

    def __init__(self) -> None:
        self._tokens: dict[str, Tensor] = {}  # request id -> [at most `length`] tokens

    def append(self, tokens: dict[str, tuple[Tensor, int]]) -> None:
        """Append the tokens of a step. Requests that are absent from the step are dropped.

        Args:
            tokens: Request id -> [1] sampled token, and how many tokens are kept.
        """
        self._tokens = {
            request_id: torch.cat([*self._get(request_id), token])[-length:]
            for request_id, (token, length) in tokens.items()
        }

    def fill_in(self, request_id: str, last_ids: Sequence[int], device: torch.device) -> Tensor:
        """Replace placeholders by the tokens on the device.

        Args:
            request_id: The request.
            last_ids: Its last tokens as the host knows them, placeholders at the end.
            device: Device of the result.

        Returns:
            [n] the tokens.

        Raises:
            EngineFailed: The tokens of the placeholders are not known. The engine has a fault.
        """
        known = [each for each in last_ids if each != PLACEHOLDER]
        missing = len(last_ids) - len(known)
        own = self._tokens.get(request_id)
        if missing > (0 if own is None else len(own)):
            raise EngineFailed("The newest tokens of an answer are not known.")
        tokens = copy_numbers(known, torch.long, device)
        return tokens if own is None or not missing else torch.cat([tokens, own[-missing:]])

    def clear(self) -> None:
        """Drop all tokens."""
        self._tokens = {}

    def _get(self, request_id: str) -> list[Tensor]:
        return [self._tokens[request_id]] if request_id in self._tokens else []


def forbid_completions(logits: Tensor, ruled_out: Sequence[Sequence[int]], last_ids: Tensor) -> None:
    """Forbid the tokens that would complete a ruled-out sequence, in place and without reading a token on the host.

    Args:
        logits: [vocab].
        ruled_out: Token sequences that must not occur.
        last_ids: [n] last tokens of the answer.
    """
    longest = max(map(len, ruled_out)) - 1
    beginnings = copy_numbers(
        [[NO_TOKEN] * (longest - len(each) + 1) + list(each[:-1]) for each in ruled_out], torch.long, logits.device
    )
    own = torch.nn.functional.pad(last_ids, (longest, 0), value=NO_TOKEN - 1)[len(last_ids) :]
    is_complete = ((beginnings == own) | (beginnings == NO_TOKEN)).all(-1)
    last = copy_numbers([each[-1] for each in ruled_out], torch.long, logits.device)
    logits.index_add_(0, last, torch.zeros_like(is_complete, dtype=logits.dtype).masked_fill(is_complete, -torch.inf))
