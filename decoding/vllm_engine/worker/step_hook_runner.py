"""All hooks of one step, which the adapter of a model runner calls around its own work.

Taps act in the forward pass. The hooks around the sampler are in `sampler_hook_runner.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from decoding.vllm_engine.worker.sampler_hook_runner import SamplerHookRunner, StepEarlyExitTap
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure


class StepTap(Protocol):
    """Observes or edits activations of a forward pass. It is set up before the pass and reset after it."""

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None: ...

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None: ...

    def reset(self) -> None: ...


class StepHookRunner:
    """The hooks of one model runner.

    In every step that has a gang in it, the adapter calls `before_forward`, `after_forward`, `before_sampling`,
    `after_sampling` and `take_token_info`, in this order. An exception in one of them fails the gangs of the step. All
    other requests go on, and so does the engine core of vLLM, which would stop on it.
    """

    def __init__(self, device: torch.device) -> None:
        self.states = StateStore()
        self.sampler_hook_runner = SamplerHookRunner(self.states, device)
        self.head_tap: StepTap | None = None  # None: the model's heads cannot be tapped
        self.attention_tap: StepTap | None = None  # None: the model's attention cannot be edited
        self.missing: dict[str, str] = {}  # capability that the model lacks -> reason
        self.token_info: TokenInfo = {}

    @property
    def early_exit_tap(self) -> StepEarlyExitTap | None:
        return self.sampler_hook_runner.early_exit_tap

    @early_exit_tap.setter
    def early_exit_tap(self, tap: StepEarlyExitTap) -> None:
        self.sampler_hook_runner.early_exit_tap = tap

    def before_forward(self, rows: StepRows) -> None:
        """Set up the taps."""
        self.token_info = {}
        if self.early_exit_tap is not None:
            with self._isolate_failures(rows):
                self.early_exit_tap.before_forward(rows)
        for tap in filter(None, (self.head_tap, self.attention_tap)):
            with self._isolate_failures(rows):
                tap.before_forward(rows, self.token_info)

    def after_forward(self, rows: StepRows) -> None:
        """Reset the taps, and store what probes have captured."""
        if self.early_exit_tap is not None:
            with self._isolate_failures(rows):
                self.early_exit_tap.after_forward()
        for tap in filter(None, (self.head_tap, self.attention_tap)):
            with self._isolate_failures(rows):
                tap.after_forward(rows, self.token_info)

    def before_sampling(self, rows: StepRows, logits: Tensor) -> Tensor:
        """Run the `logits` hooks.

        Args:
            rows: Rows of the step.
            logits: [rows, vocab] as the model gave them. The tensor may be overwritten.

        Returns:
            [rows, vocab] with the scores of the strategies in the main rows.
        """
        with self._isolate_failures(rows):
            return self.sampler_hook_runner.before_sampling(rows, logits, self.token_info)
        return logits

    def after_sampling(self, rows: StepRows, sampled: Tensor) -> None:
        """Copy the token of each main row to its branches.

        Args:
            rows: Rows of the step.
            sampled: [rows, 1] sampled tokens, changed in place.
        """
        with self._isolate_failures(rows):
            self.sampler_hook_runner.after_sampling(rows, sampled, self.token_info)

    def take_token_info(self) -> TokenInfo:
        """Return the information about the tokens of this step, and drop it."""
        token_info, self.token_info = self.token_info, {}
        return token_info

    @contextmanager
    def _isolate_failures(self, rows: StepRows) -> Iterator[None]:
        """Fail all gangs of the step if the block raises, and reset what the hooks keep between steps.

        Args:
            rows: Rows of the step.

        Yields:
            Nothing.
        """
        try:
            yield
        except Exception as error:
            for row in rows.members:
                record_failure(self.token_info, rows.request_ids[row], error, "step_hooks_failed")
            self.sampler_hook_runner.reset()
            taps: tuple[StepTap | StepEarlyExitTap | None, ...] = (
                self.head_tap,
                self.attention_tap,
                self.early_exit_tap,
            )
            for tap in taps:
                if tap is not None:
                    tap.reset()

    def get_stats(self) -> dict[str, Any]:
        """Return what the server process has to know about this model runner.

        Returns:
            The number and the bytes of the strategy states, the reason for each capability that the model lacks, the
            number of layers for early exits (0 if they cannot be tapped), and whether the model's head is its input
            embedding.
        """
        tap = self.early_exit_tap
        return {
            "states": len(self.states),
            "state_bytes": self.states.num_bytes,
            "missing": self.missing,
            "layers": 0 if tap is None else tap.num_layers,
            "has_tied_embeddings": tap is not None and tap.has_tied_embeddings,
        }
