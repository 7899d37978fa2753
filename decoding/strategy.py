"""One decoding method from one paper; its fields are its parameters."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from decoding.ask import Answer, Ask, Probe, Relevance

Effect = Ask | Probe | Relevance | list[Ask]
Program = Generator[Effect, Any, Ask | Answer]
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step, for one request or for a batch of requests: `...` stands for nothing or for the batch."""

    scores: Tensor  # [..., vocab] as left by the strategy inside this one
    raw: Tensor  # [..., vocab] the main branch as the model gave it
    branches: Mapping[str, Tensor]  # "owner/name" -> [..., vocab]; without those that sleep
    memory: Tensors  # what this strategy's digest left, each [..., *shape]
    position: Tensor  # [..., 1] tokens generated so far


@dataclass(frozen=True, slots=True)
class Captured:
    """What an engine hands to `digest`, once per layer (probe) or once per generated token (`Ask.digest`)."""

    heads: Tensors = field(default_factory=dict)  # prompt name -> [heads, head_dim] at the last position, one layer
    layer: int = 0
    layers: int = 0
    logits: Tensor | None = None  # [vocab], raw, of one generated token


class Strategy(BaseModel):
    """The text side speaks in asks and never sees a tensor; the tensor side is pure functions next to the model.

    Hooks must keep shape, dtype and device, leave their inputs as they are, and keep -inf at -inf. `heads` acts on
    the main row only, at every position, prompt included.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    name: ClassVar[str]
    paper: ClassVar[str]

    def prepare(self, ask: Ask) -> Ask:
        """The common case: add branches, ask nothing first."""
        return ask

    def run(self, ask: Ask) -> Program:
        """Yield questions, be sent their answers; return the ask to stream, or an answer to end without one."""
        return self.prepare(ask)
        yield  # makes this a generator

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        """Fold: what was remembered so far (empty at first) and what was captured now -> what to remember."""
        raise NotImplementedError(f"{self.name} captures nothing")

    def logits(self, step: Step) -> Tensor:
        """[..., vocab] -> [..., vocab], once per generated token."""
        return step.scores

    def wakes(self, raw: Tensor) -> Tensor:
        """[..., vocab] of the main branch -> [...] true where this step needs the strategy's branches.

        The branches of a strategy with this hook sleep: elsewhere they are not run, and `Step.branches` lacks them.
        What is said meanwhile they read in one pass when they wake.
        """
        return torch.ones(raw.shape[:-1], dtype=torch.bool, device=raw.device)

    def heads(self, memory: Tensors) -> Tensor | None:
        """[layers, heads] factors on the head outputs before the output projection. None: all 1."""
        return None

    @classmethod
    def refuses(cls, outer: type[Strategy]) -> str | None:
        """Why `outer` cannot stand outside this strategy in a stack; None where it can."""
        return None

    @classmethod
    def hooks(cls) -> frozenset[str]:
        """The tensor hooks this strategy overrides. What it needs of an engine follows from them."""
        names = ("digest", "logits", "wakes", "heads")
        return frozenset(name for name in names if getattr(cls, name) is not getattr(Strategy, name))
