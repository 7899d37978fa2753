"""What runs a model. Engines know nothing about particular strategies."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from decoding.answer import Heat, Memory, Token, Usage
from decoding.ask import Ask, Probe, Prompt, Relevance

Capability = Literal[
    "branches",
    "logits",
    "heads",
    "attend",
    "narrow",
    "exits",
    "probe",
    "vision",
    "attention",
    "digest",
    "relevance",
    "noise",
    "choices",
    "begin",
    "logprobs",
    "grammar",
    "tokens",
]


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What a client may want to know of the model that is served."""

    name: str
    context: int  # tokens, prompt and answer together
    pictures: bool


class Engine(Protocol):
    """Every method raises `Unsupported` or `BadRequest` before anything runs when the ask cannot be served."""

    @property
    def capabilities(self) -> frozenset[Capability]: ...

    @property
    def card(self) -> ModelCard: ...

    def generate(self, ask: Ask) -> AsyncGenerator[Token, None]:
        """Stream the answer. Closing the generator frees its rows before the next step."""
        ...

    async def tokens(self, prompt: Prompt) -> list[int]:
        """The ids of a prompt as the model reads it, with those that stand for its pictures."""
        ...

    async def probe(self, probe: Probe) -> tuple[Memory, Usage]: ...

    async def relevance(self, relevance: Relevance) -> Heat: ...

    def forget(self, memory: Memory) -> None:
        """Free what a probe or a digest left. The handle is dead afterwards."""
        ...

    async def counters(self) -> Mapping[str, int]:
        """What it counts of its own doings, since it started: name -> count. For operators; {} where it counts none."""
        ...

    @property
    def is_full(self) -> bool:
        """Whether nothing more can wait, so that a request can be refused before it is read."""
        ...

    @property
    def alive(self) -> bool: ...

    async def start(self) -> None:
        """Load the model and warm it up."""
        ...

    async def close(self) -> None:
        """Stop, failing what still runs."""
        ...
