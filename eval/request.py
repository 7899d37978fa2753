"""One question under one recipe and one seed, and the key under which its answer is kept."""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
from dataclasses import dataclass
from functools import cached_property

from pydantic import BaseModel, ConfigDict, JsonValue

from eval.question import Question
from eval.recipe import Recipe


class Sampling(BaseModel):
    model_config = ConfigDict(frozen=True)

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 512

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Request:
    question: Question
    recipe: Recipe  # as written, and sent
    full: Recipe  # with all defaults: what the answer depends on
    sampling: Sampling
    model: str
    seed: int | None
    weights: str | None = None

    @cached_property
    def key(self) -> str:
        """SHA-256 of all that the answer depends on. Neither the server's address nor the door is a part of it."""
        weights = {} if self.weights is None else {"weights": self.weights}
        return digest(
            weights
            | {
                "image": self.question.image_hash,
                "prompt": self.question.prompt,
                "sampling": self.sampling.model_dump(),
                "strategy": self.full.name,
                "parameters": dict(self.full.parameters),
                "model": self.model,
                "seed": self.seed,
            }
        )

    def body(self, door: str) -> dict[str, JsonValue]:
        """`door` is how the strategy is chosen: by "body", by "suffix", or not at all on a server of another kind."""
        fields: dict[str, JsonValue] = {
            "model": f"{self.model}:{self.recipe.name}" if door == "suffix" else self.model,
            "messages": [{"role": "user", "content": self._content}],
            "temperature": self.sampling.temperature,
            "max_tokens": self.sampling.max_tokens,
        }
        if not self.sampling.greedy:
            fields |= {"top_p": self.sampling.top_p, "seed": self.seed}
        if door == "body":
            fields["decoding"] = self.recipe.body
        return fields

    @property
    def _content(self) -> JsonValue:
        kind = mimetypes.guess_type(self.question.image.name)[0] or "image/png"
        data = base64.b64encode(self.question.image.read_bytes()).decode()
        return [
            {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}},
            {"type": "text", "text": self.question.prompt},
        ]


def seed_of(seed: int, question: Question) -> int:
    """The same for every strategy, and another for every question: one seed for all of them would draw the same
    quantile for every first token, and their errors would move together."""
    return int(digest({"seed": seed, "image": question.image_hash, "prompt": question.prompt})[:8], 16) >> 1


def digest(value: object) -> str:
    """Of anything that JSON can hold."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
