"""Outputs of an engine: plain data and handles, no model tensors."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

FinishReason = Literal["stop", "length"]
ClaimAction = Literal["kept", "replaced", "dropped"]  # of `verify` on a phrase

NO_TOKEN = -1  # id of a token that no model has generated


@dataclass(frozen=True, slots=True)
class StateHandle:
    """Name of a strategy state, which stays next to the model."""

    handle: str


@dataclass(frozen=True, slots=True)
class RelevanceMap:
    """Relevance of each region of an image to a text, from an image-text matcher."""

    grid: NDArray[np.float32]  # [rows, columns], not normalized
    similarity: float  # cosine of image and text, -1 ... 1
    input_size: int  # side of the matcher's input, in pixels


@dataclass(frozen=True, slots=True)
class Usage:
    """Cost of an answer. The costs of extra requests of a strategy add up."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    steps: int = 0
    forward_passes: int = 0  # rows run through the model, prompts included
    changed_steps: int | None = 0  # None: unknown, because the strategy acts inside the model
    seconds: Mapping[str, float] = field(default_factory=dict)  # phase -> wall time


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its log-probability after the strategies, before penalties and temperature."""

    id: int
    text: str
    bytes: bytes
    logprob: float


@dataclass(frozen=True, slots=True, eq=False)
class PromptScores:
    """Log-probabilities of the tokens of a prompt, each under the tokens before it. The first token has none.

    Attributes:
        logprobs: [length - 1], of the tokens themselves.
        ranks: [length - 1]; 1 is the likeliest token.
        top_ids: [length - 1, n] ids of the likeliest tokens.
        top_logprobs: [length - 1, n].
    """

    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int64]
    top_ids: NDArray[np.int64]
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class PromptLogprobs:
    """The tokens of a prompt with their log-probabilities, without the strategies.

    Attributes:
        ids: [length] token ids.
        offsets: [length + 1] characters of the prompt's text before each token, and of the whole text. Special tokens
            are no part of the text.
        scores: Log-probabilities.
        is_scored: [length - 1] false for image tokens, which the model does not predict.
        texts: Token id -> its text.
    """

    ids: Sequence[int]
    offsets: Sequence[int]
    scores: PromptScores
    is_scored: NDArray[np.bool_]
    texts: Mapping[int, str]


@dataclass(frozen=True, slots=True)
class FinishInfo:
    """End of an answer."""

    reason: FinishReason
    usage: Usage
    state: StateHandle | None = None  # of the answer's logits, with `GenerateRequest.updates_state`
    text_logprobs: Mapping[str, float] = field(default_factory=dict)  # scored text -> log-probability
    prompt_logprobs: PromptLogprobs | None = None  # with `GenerateRequest.prompt_logprobs`


@dataclass(frozen=True, slots=True)
class CheckedClaim:
    """A thing that an answer names, and how sure the model is of it.

    Attributes:
        text: The phrase, as the answer has it.
        start: Offset of its first character in the answer, by code point; None where the answer does not have it.
        end: Offset after its last character; None where the answer does not have it.
        question: The question to the model.
        probability: P(yes) among the spellings of yes and no.
        action: Action of `verify` on the phrase. None if it was only checked.
    """

    text: str
    start: int | None
    end: int | None
    question: str
    probability: float
    action: ClaimAction | None = None


@dataclass(slots=True)
class RequestStats:
    """The cost of a generation request so far. The engine updates it until the request has left the batch.

    Times are those of `time.perf_counter`.

    Attributes:
        left: Of an aborted request: done once it has left the batch, so that the cost is final.
    """

    prompt_tokens: int = 0
    forward_passes: int = 0
    steps: int = 0
    changed_steps: int = 0
    arrival_time: float = field(default_factory=time.perf_counter)
    scheduled_time: float = 0.0
    first_token_time: float = 0.0
    left: asyncio.Future[None] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. Its `text` is empty while a character or a stop string is incomplete."""

    id: int
    text: str
    chosen: TokenLogprob | None = None  # None without log-probabilities in the request
    top: tuple[TokenLogprob, ...] = ()
    grounding: float | None = None  # log p(token | main) - log p(token | grounding_branch)
    finish: FinishInfo | None = None  # on the last token only
    changed: bool | None = None  # whether another token was likeliest before the strategies; None: unknown
    claims: tuple[CheckedClaim, ...] = ()  # of the sentence that ends before this token
    stats: RequestStats | None = field(default=None, compare=False, repr=False)  # of its request, live


@dataclass(frozen=True, slots=True)
class Answer:
    """A finished answer."""

    text: str
    tokens: tuple[Token, ...]
    finish: FinishInfo

    @classmethod
    def from_votes(cls, votes: Mapping[str, float], prompt_tokens: int, top_logprobs: int | None) -> Answer:
        """Build the answer with the most votes, as one token whose probability is its share of the votes.

        The cost of the votes is not included.

        Args:
            votes: Text -> votes.
            prompt_tokens: Length of the prompt.
            top_logprobs: Number of alternatives, or None for no log-probabilities.

        Returns:
            The answer.
        """
        ranked = sorted(votes, key=lambda text: -votes[text])
        shares = [
            TokenLogprob(NO_TOKEN, text, text.encode(), math.log(votes[text] / sum(votes.values())))
            for text in ranked
            if votes[text] > 0
        ]
        finish = FinishInfo("stop", Usage(prompt_tokens, completion_tokens=1, steps=1))
        chosen = None if top_logprobs is None else shares[0]
        token = Token(NO_TOKEN, ranked[0], chosen, tuple(shares[: top_logprobs or 0]), finish=finish)
        return cls(ranked[0], (token,), finish)

    @property
    def text_logprobs(self) -> Mapping[str, float]:
        """Scored text -> log-probability."""
        return self.finish.text_logprobs

    @property
    def state(self) -> StateHandle | None:
        """The state that the answer's logits were folded into."""
        return self.finish.state
