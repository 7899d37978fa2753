"""Strategy states that the transformers engine keeps under handles, next to the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.hf_engine.model.model import PrefillOutput
from decoding.prompt import Prompt
from decoding.tensor_hooks import Tensors


@dataclass(frozen=True, slots=True)
class StoredStrategyState:
    """A strategy state in the engine, and the prefill of the probe that left it.

    Attributes:
        tensors: The state.
        prompt: Main prompt of the probe that left it, if a request for that prompt can continue from its prefill.
        prefill: The prefill of `prompt`.
        head_scales: [layers, heads] that scaled the heads in `prefill`.
    """

    tensors: Tensors
    prompt: Prompt | None = None
    prefill: PrefillOutput | None = None
    head_scales: Tensor | None = None

    def fits(self, prompt: Prompt, head_scales: Tensor | None) -> bool:
        """Return whether `prefill` is that of a prompt with the given head scales, [layers, heads] or None."""
        return self.prompt == prompt and are_equal(self.head_scales, head_scales)


def are_equal(one: Tensor | None, other: Tensor | None) -> bool:
    """Return whether two head scales, each [layers, heads] or None, are equal."""
    return torch.equal(one, other) if one is not None and other is not None else one is other
