"""Capture of the attention that the last tokens of probed prompts pay to the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.pipeline.composition import copy_numbers
from decoding.vllm_engine.worker.attention.paged_attention import AttentionCall
from decoding.vllm_engine.worker.attention.second_attention import AttentionContext
from decoding.vllm_engine.worker.probe_capture import find_probes
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo


@dataclass(frozen=True, slots=True, eq=False)
class CapturedPrompt:
    """A prompt whose last token's attention is captured."""

    row: int
    rows: Tensor  # [1] the row
    token: Tensor  # [1] number of the last token among the tokens of the step
    position: Tensor  # [1] position of the last token
    length: int
    image_positions: Tensor  # [image tokens]


class GangAttentionCapture:
    """The attention captures of one model runner.

    The head tap folds them into the states of the probes. It is called after the attention of each layer.

    Attributes:
        captured_attention: Row of a probed prompt -> [heads, image tokens] of the layer that has just run.

    Args:
        context: The model and the strategy states.
    """

    def __init__(self, context: AttentionContext) -> None:
        self.context = context
        self.captured_attention: dict[int, Tensor] = {}
        self._prompts: list[CapturedPrompt] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing is captured in this step."""
        return not self._prompts

    def before_forward(self, rows: StepRows, _: TokenInfo) -> None:
        """Find the prompts of the probes that capture attention.

        Args:
            rows: Rows of the step.
        """
        self._prompts = [
            self._build_prompt(row, rows)
            for spec, rows_by_name in find_probes(rows)
            if "attention" in spec.capture
            for row in rows_by_name.values()
        ]

    def apply(self, call: AttentionCall) -> None:
        """Compute the attention of the last tokens a second time. The output stays as it is."""
        for prompt in self._prompts:
            keys, _ = call.gather_keys_and_values(prompt.rows, prompt.position, prompt.length)
            weights = call.compute_weights(call.compute_scores(prompt.token, keys), prompt.position)
            own = weights[0].index_select(1, prompt.image_positions)
            self.captured_attention[prompt.row] = self.context.shards.gather(own, 0)

    def after_forward(self, _: StepRows, __: TokenInfo) -> None:
        """Drop the captured attention."""
        self.reset()

    def reset(self) -> None:
        """Drop the step."""
        self._prompts = []
        self.captured_attention.clear()

    def _build_prompt(self, row: int, rows: StepRows) -> CapturedPrompt:
        length = int(rows.token_starts[row + 1] - rows.token_starts[row])
        positions = self.context.find_image_tokens(rows.request_ids[row]).compute_positions()
        image_positions = positions.to(self.context.device, non_blocking=True)
        rows_index, token, position = (
            copy_numbers([number], torch.long, self.context.device)
            for number in (row, int(rows.token_starts[row + 1]) - 1, length - 1)
        )
        return CapturedPrompt(row, rows_index, token, position, length, image_positions)
