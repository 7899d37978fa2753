"""One question under one stack and one seed, and the key of its answer."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, JsonValue

from eval.core.hashing import hash_json
from eval.core.task import BenchmarkQuestion
from eval.core.yes_score import TOP_LOGPROBS
from eval.runs.stack_spec import StackSpec

StrategyVia = Literal["body", "suffix", "none"]
"""How a request selects its strategy: in the body, by the suffix of the model, or not at all on other servers."""


class SamplingSettings(BaseModel):
    """Sampling parameters of all requests of a run. A temperature of 0 is greedy decoding."""

    model_config = ConfigDict(frozen=True)

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512

    @property
    def greedy(self) -> bool:
        """Whether decoding is greedy."""
        return self.temperature == 0


@dataclass(frozen=True)
class EvalRequest:
    """One request of a run.

    Attributes:
        question: The question.
        spec: The stack with the parameters that are sent.
        full_spec: The stack with all defaults. The answer depends on it.
        sampling: Sampling parameters.
        model: Name of the model.
        seed: Seed, None under greedy decoding.
        weights: Fingerprint of the weights, if the server reports one.
        check: Have the claims of the answer checked.
        token_scores: With `check`, get grounding and log-probability of each token, too.
        yes_score: Get the log-probabilities of yes and no. Answer and key do not depend on this.
    """

    question: BenchmarkQuestion
    spec: StackSpec
    full_spec: StackSpec
    sampling: SamplingSettings
    model: str
    seed: int | None
    weights: str | None = None
    check: bool = False
    yes_score: bool = False
    token_scores: bool = True

    @cached_property
    def key(self) -> str:
        """The SHA-256 of all that the answer depends on. Server address and `--strategy-via` are not part of it."""
        optional: dict[str, JsonValue] = {"weights": self.weights} if self.weights is not None else {}
        optional |= {"check": True} if self.check else {}
        return hash_json(
            optional
            | {
                "image": self.question.image_hash,
                "prompt": self.question.prompt,
                "sampling": self.sampling.model_dump(),
                "strategy": self.full_spec.name,
                "parameters": dict(self.full_spec.parameters),
                "model": self.model,
                "seed": self.seed,
            }
        )

    def build_body(self, strategy_via: StrategyVia) -> dict[str, JsonValue]:
        """Build the JSON body of the chat completion request."""
        body: dict[str, JsonValue] = {
            "model": f"{self.model}:{self.spec.label}" if strategy_via == "suffix" else self.model,
            "messages": [{"role": "user", "content": self._content}],
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
        }
        if not self.sampling.greedy:
            body |= {"top_p": self.sampling.top_p, "seed": self.seed}
        if strategy_via == "body":
            body["decoding"] = self.spec.decoding
        if self.yes_score:
            body |= {"logprobs": True, "top_logprobs": TOP_LOGPROBS}
        if self.check:
            options = body.get("decoding")
            body["decoding"] = {
                **(options if isinstance(options, dict) else {}),
                "check": True,
                **({"grounding": True} if self.token_scores else {}),
            }
        return body

    @property
    def _content(self) -> JsonValue:
        text: JsonValue = {"type": "text", "text": self.question.prompt}
        image = self.question.read_image()
        if image is None:
            return [text]
        media_type, content = image
        data = base64.b64encode(content).decode()
        return [
            {"type": "image_url", "image_url": {"url": f"data:{media_type};base64,{data}"}},
            text,
        ]


def derive_seed(seed: int, question: BenchmarkQuestion) -> int:
    """Derive the seed of a question: equal for all strategies, different for every question.

    With one seed for all questions, every first token would be drawn at the same quantile, and the errors of the
    questions would be correlated.

    Args:
        seed: A seed of the run.
        question: The question.

    Returns:
        A seed below 2**31.
    """
    return int(hash_json({"seed": seed, "image": question.image_hash, "prompt": question.prompt})[:8], 16) >> 1
