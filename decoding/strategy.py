"""One decoding method from one paper; its fields are its parameters."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from decoding.ask import Answer, Ask, Probe, Relevance

Effect = Ask | Probe | Relevance | list[Ask]
Program = Generator[Effect, Any, Ask | Answer]
Tensors = Mapping[str, Tensor]

# Marks of parameters, beside their `Field`. Requests that differ in marked ones alone share their hooks' calls.
PER_ROW = "per row"  # only `logits` reads it, as a weight or a cut; where rows differ in it, it is a tensor [..., 1]
TEXT_SIDE = "text side"  # no hook reads it


@dataclass(frozen=True, slots=True)
class Step:
    """One decoding step, for one request or for a batch of requests: `...` stands for nothing or for the batch."""

    scores: Tensor  # [..., vocab] as left by the strategy inside this one
    raw: Tensor  # [..., vocab] the main branch as the model gave it
    branches: Mapping[str, Tensor]  # "owner/name" -> [..., vocab]; without those that sleep
    memory: Tensors  # what this strategy's digest left, each [..., *shape]
    position: Tensor  # [..., 1] tokens generated so far
    early: Tensor | None = None  # [..., exits, vocab] the main branch after the layers that `exits` names


@dataclass(frozen=True, slots=True)
class Exits:
    """After how many layers (0: the embeddings) the model is asked for the next token, through its own head."""

    layers: tuple[int, ...]
    normed: bool = True  # through the final norm first, as after the last layer


@dataclass(frozen=True, slots=True)
class Keys:
    """What the newest token of each row attends to, in one layer."""

    pictures: Tensor  # [..., keys] number of the picture token in its prompt; -1 where the token is text
    layer: int
    layers: int

    @property
    def visual(self) -> Tensor:
        """[..., keys] true for the tokens of pictures."""
        return self.pictures >= 0


@dataclass(frozen=True, slots=True)
class Captured:
    """What an engine hands to `digest`, once per layer (probe) or once per generated token (`Ask.digest`)."""

    heads: Tensors = field(default_factory=dict)  # prompt name -> [heads, head_dim] at the last position, one layer
    layer: int = 0
    layers: int = 0
    vision: Tensors = field(default_factory=dict)  # prompt name -> [tower layers, pictures, heads, patches] attention
    attention: Tensors = field(default_factory=dict)  # prompt name -> [heads, picture tokens], of its last token's
    logits: Tensor | None = None  # [vocab], raw, of one generated token


class Strategy(BaseModel):
    """The text side speaks in asks and never sees a tensor; the tensor side is pure functions next to the model.

    Hooks must keep shape, dtype and device, leave their inputs as they are, and keep -inf at -inf. `heads` and `attend`
    act on the main row only: `heads` at every position, prompt included; `attend` on what the newest token looks at.
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

    def attend(self, scores: Tensor, keys: Keys, memory: Tensors) -> Tensor:
        """[..., heads, keys] -> the same: scaled attention scores of the newest token, before mask and softmax."""
        return scores

    def narrow(self, memory: Tensors) -> Tensor | None:
        """[layers, picture tokens] true where this strategy's branches see the token. None: everywhere.

        What a layer does not see, later ones must not see either.
        """
        return None

    def exits(self, layers: int, tied: bool) -> Exits:
        """Where to listen, for `Step.early`, in a model of so many layers. `tied`: its head is its embedding."""
        return Exits(())

    @classmethod
    def refuses(cls, outer: type[Strategy]) -> str | None:
        """Why `outer` cannot stand outside this strategy in a stack; None where it can."""
        return None

    def kind(self) -> tuple[type[Strategy], str]:
        """Equal for strategies that share their hooks' calls. As JSON: a list among the parameters has no hash."""
        return type(self), self.model_dump_json(exclude=self.marked(PER_ROW) | self.marked(TEXT_SIDE))

    @classmethod
    @cache
    def marked(cls, mark: str) -> set[str]:
        """Names of parameters."""
        return {name for name, parameter in cls.model_fields.items() if mark in parameter.metadata}

    @classmethod
    @cache
    def hooks(cls) -> frozenset[str]:
        """The tensor hooks this strategy overrides. What it needs of an engine follows from them."""
        names = ("digest", "logits", "wakes", "heads", "attend", "narrow", "exits")
        return frozenset(name for name in names if getattr(cls, name) is not getattr(Strategy, name))
