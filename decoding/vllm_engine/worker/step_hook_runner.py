"""The strategies' hooks of one step. The adapter of a model runner calls them around its own work."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from decoding.vllm_engine.worker.sampler_hook_runner import SamplerHookRunner
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo


class LayerTap(Protocol):
    """Taps between the layers of the model."""

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None: ...

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None: ...


class StepHookRunner:
    """The hooks of one model runner.

    In every step that has a gang in it, the adapter calls `before_forward`, `after_forward`, `before_sampling`,
    `after_sampling` and `take_token_info`, in this order.
    """

    def __init__(self, device: torch.device) -> None:
        self.states = StateStore()
        self.sampler_hook_runner = SamplerHookRunner(self.states, device)
        self.layer_tap: LayerTap | None = None  # None: nothing can act inside this model
        self.token_info: TokenInfo = {}

    def before_forward(self, rows: StepRows) -> None:
        """Prepare the hooks inside the model."""
        self.token_info = {}
        if self.layer_tap is not None:
            self.layer_tap.before_forward(rows, self.token_info)

    def after_forward(self, rows: StepRows) -> None:
        """Reset the hooks inside the model, and store what probes have captured."""
        if self.layer_tap is not None:
            self.layer_tap.after_forward(rows, self.token_info)

    def before_sampling(self, rows: StepRows, logits: Tensor) -> Tensor:
        """Run the `logits` hooks.

        Args:
            rows: Rows of the step.
            logits: [rows, vocab] as the model gave them. The tensor may be overwritten.

        Returns:
            [rows, vocab] with the scores of the strategies in the main rows.
        """
        return self.sampler_hook_runner.before_sampling(rows, logits, self.token_info)

    def after_sampling(self, rows: StepRows, sampled: Tensor) -> None:
        """Copy the token of each main row to its branches.

        Args:
            rows: Rows of the step.
            sampled: [rows, 1] sampled tokens, changed in place.
        """
        self.sampler_hook_runner.after_sampling(rows, sampled, self.token_info)

    def take_token_info(self) -> TokenInfo:
        """Return the information about the tokens of this step, and forget it."""
        token_info, self.token_info = self.token_info, {}
        return token_info

    def stats(self) -> dict[str, Any]:
        """Return the number and size of the states, and whether the head tap is installed."""
        return {
            "states": len(self.states),
            "state_bytes": self.states.num_bytes,
            "has_layer_tap": self.layer_tap is not None,
        }
