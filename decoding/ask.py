"""What a strategy says to an engine, and hears back: frozen data, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from decoding.answer import Answer, Heat, Memory
from decoding.prompt import Message, Noise, Picture, Prompt
from decoding.sampling import Sampling

if TYPE_CHECKING:
    from decoding.strategy import Strategy

__all__ = [
    "MAIN",
    "Answer",
    "Ask",
    "Heat",
    "Memory",
    "Message",
    "Noise",
    "Picture",
    "Probe",
    "Prompt",
    "Relevance",
    "Sampling",
]

MAIN = "main"  # beside the names of the branches: the ask's own prompt


@dataclass(frozen=True, slots=True)
class Ask:
    """Generate an answer. The strategies of `stack`, outermost first, act on it through their tensor hooks."""

    prompt: Prompt
    sampling: Sampling = field(default_factory=Sampling)
    branches: Mapping[str, Prompt] = field(default_factory=dict)  # "owner/name" -> prompt
    memories: Mapping[str, Memory] = field(default_factory=dict)  # owner -> what its hooks are given
    stack: tuple[Strategy, ...] = ()
    choices: tuple[str, ...] = ()  # not empty: one forward pass, no tokens, `Answer.choices` is filled
    digest: Strategy | None = None  # its `digest` folds the raw logits of every step into `Answer.memory`
    compare: str | None = None  # branch against which each token's grounding is measured

    def but(self, **changes: Any) -> Ask:
        return replace(self, **changes)

    def branch(self, owner: Strategy, name: str, prompt: Prompt) -> Ask:
        return replace(self, branches={**self.branches, f"{owner.name}/{name}": prompt})

    def remember(self, owner: Strategy, memory: Memory) -> Ask:
        return replace(self, memories={**self.memories, owner.name: memory})


@dataclass(frozen=True, slots=True)
class Probe:
    """One forward pass per prompt, in lockstep. `owner.digest` folds what is captured, layer by layer, into a memory.

    With `layerwise`, the factors that `owner.heads` gives for a layer scale that layer's head outputs in the `main`
    prompt before the next layer runs. The caches of `main` are kept with the memory: an ask for the same prompt goes
    on from them.
    """

    owner: Strategy
    prompts: Mapping[str, Prompt]
    main: str
    capture: frozenset[Literal["heads", "attention", "vision"]] = frozenset({"heads"})
    layerwise: bool = False


@dataclass(frozen=True, slots=True)
class Relevance:
    """Ask the image-text matcher which regions of the picture matter to the text. Answered by a `Heat`."""

    picture: Picture
    text: str
