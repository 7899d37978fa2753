"""A strategy with failing hooks, for the tests of both engines."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from decoding.registry import load_registry
from decoding.requests import GenerateRequest
from decoding.strategy import Activations, AttentionKeys, EarlyExits, Step, Strategy, Tensors


class FailingStrategy(Strategy):
    """Fails in one hook; in `logits` and `needs_branches` from the second token on."""

    name: ClassVar[str] = "failing"
    paper: ClassVar[str] = "none"
    hook: str = "none"

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("blind", request.prompt.without_images())

    def needs_branches(self, raw: Tensor) -> Tensor:
        if self.hook == "needs_branches":
            raise ZeroDivisionError
        return torch.ones(raw.shape[:-1], dtype=torch.bool)

    def logits(self, step: Step) -> Tensor:
        is_late = step.position > 0
        match self.hook:
            case "nan":
                return step.scores.masked_fill(is_late, math.nan)
            case "-inf":
                return step.scores.masked_fill(is_late, -math.inf)
            case "shape":
                return step.scores[..., 1:]
            case "logits":
                if is_late.any():
                    raise ValueError("/some/path")
        return step.scores

    def head_scales(self, state: Tensors) -> Tensor | None:
        if self.hook == "head_scales":
            raise ZeroDivisionError
        return torch.ones(1, 1) if self.hook == "head_scales shape" else None

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if self.hook == "edit_attention_scores":
            raise ZeroDivisionError
        return scores[..., 1:] if self.hook == "scores shape" else scores

    def early_exit_layers(self, layers: int, tied: bool) -> EarlyExits:
        if self.hook == "early_exit_layers":
            raise ZeroDivisionError
        return EarlyExits((layers - 1,) if self.hook == "none" else ())

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        raise ZeroDivisionError


class FailingInsideModel(Strategy):
    """Fails in `keep_image_tokens` of its branch."""

    name: ClassVar[str] = "failing"
    paper: ClassVar[str] = "none"
    hook: str

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("part", request.prompt)

    def keep_image_tokens(self, state: Tensors) -> Tensor | None:
        if self.hook == "keep_image_tokens":
            raise ZeroDivisionError
        return None


def register() -> None:
    """Register the strategy in this process: vLLM's processes build strategies by their registered names."""
    load_registry().strategies[FailingStrategy.name] = FailingStrategy
