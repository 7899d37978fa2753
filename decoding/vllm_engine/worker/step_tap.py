"""Interface of the taps of a model runner."""

from __future__ import annotations

from typing import Protocol

from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo


class StepTap(Protocol):
    """Observes or edits activations of a forward pass. It is set up before the pass and reset after it."""

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Set up the tap for a step. `token_info` receives failures."""
        ...

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Reset the tap after the pass. `token_info` receives failures."""
        ...

    def reset(self) -> None:
        """Drop the step."""
        ...
