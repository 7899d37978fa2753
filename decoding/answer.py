"""What an engine says back: plain data and handles, no model tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Reason = Literal["stop", "length"]

NO_TOKEN = -1


@dataclass(frozen=True, slots=True)
class Memory:
    """Tensors that a digest left next to the model; only their name travels."""

    handle: str


@dataclass(frozen=True, slots=True)
class Heat:
    """How much each region of a picture matters to a text, according to an image-text matcher."""

    grid: NDArray[np.float32]  # [rows, columns], not normalised
    similarity: float  # cosine of picture and text, -1 ... 1
    side: int  # the matcher's input size, pixels


@dataclass(frozen=True, slots=True)
class Usage:
    """What an answer cost. Adds up over the questions that a strategy asks on the way."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    forward_passes: int = 0  # rows run through the model, prompts included
    changed_steps: int | None = 0  # None: unknown, because the strategy acts inside the model
    seconds: Mapping[str, float] = field(default_factory=dict)  # phase -> wall time


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token with its log-probability after the strategies, before penalties and temperature."""

    id: int
    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class End:
    reason: Reason
    usage: Usage
    memory: Memory | None = None  # what `Ask.digest` made of the answer's logits
    choices: Mapping[str, float] = field(default_factory=dict)  # choice -> log-probability


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` is what it adds to the answer: empty while a character or a stop string is open."""

    id: int
    text: str
    chosen: Alternative | None = None  # None where no log-probabilities were asked for
    top: tuple[Alternative, ...] = ()
    grounding: float | None = None  # log p(token | main) - log p(token | Ask.compare)
    end: End | None = None  # on the last token only
    changed: bool | None = None  # whether another token was likeliest before the strategies; None: unknown


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer, as a strategy's question gets it back."""

    text: str
    tokens: tuple[Token, ...]
    end: End

    @classmethod
    def decided(cls, votes: Mapping[str, float], prompt_tokens: int, top_logprobs: int | None) -> Answer:
        """The text with the most votes, as one token of no model's, whose probability is its share of them.

        What it has cost is counted where the votes were asked for.
        """
        ranked = sorted(votes, key=lambda text: -votes[text])
        shares = [
            Alternative(NO_TOKEN, text, text.encode(), math.log(votes[text] / sum(votes.values())))
            for text in ranked
            if votes[text] > 0
        ]
        end = End("stop", Usage(prompt_tokens, completion_tokens=1, steps=1))
        told = top_logprobs is not None
        token = Token(NO_TOKEN, ranked[0], shares[0] if told else None, tuple(shares[: top_logprobs or 0]), end=end)
        return cls(ranked[0], (token,), end)

    @property
    def choices(self) -> Mapping[str, float]:
        return self.end.choices

    @property
    def memory(self) -> Memory | None:
        return self.end.memory
