"""Requests that a strategy makes of an engine: frozen data, no tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from decoding.outputs import Answer, RelevanceMap, StateHandle
from decoding.prompt import ImageInput, Message, Noise, Prompt
from decoding.sampling_params import SamplingParams
from decoding.tensor_hooks import TensorHooks

__all__ = [
    "MAIN",
    "Answer",
    "GenerateRequest",
    "ImageInput",
    "Message",
    "Noise",
    "ProbeRequest",
    "Prompt",
    "RelevanceMap",
    "RelevanceRequest",
    "SamplingParams",
    "StateHandle",
    "VectorsRequest",
]

MAIN = "main"  # name of the request's own prompt, next to the names of its branches


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Generate an answer to `prompt`.

    A strategy sets the fields from `prompt` to `updates_state`, with names of its own choice. The runner calls
    `with_strategy` on each request of a strategy. It turns the branch name "noisy" of the strategy `vcd` into
    "vcd/noisy", so that strategies of one stack do not collide. Engines get qualified names only.
    """

    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    branches: Mapping[str, Prompt] = field(default_factory=dict)  # "name", or "strategy/name" once qualified -> prompt
    state: StateHandle | None = None  # the strategy's own, until `with_strategy` moves it to `states`
    scored_texts: tuple[str, ...] = ()  # if not empty: one forward pass, no tokens; the result is `text_logprobs`
    prompt_logprobs: int | None = None  # if set: likeliest tokens beside each of the prompt; one pass, no tokens
    updates_state: bool = False  # the strategy's `update_state` folds the raw logits of every step into `Answer.state`
    states: Mapping[str, StateHandle] = field(default_factory=dict)  # strategy -> state that its hooks receive
    stack: tuple[TensorHooks, ...] = ()  # strategies whose tensor hooks act on the request, outermost first
    strategy: TensorHooks | None = None  # strategy whose `update_state` is called
    grounding_branch: str | None = None  # branch against which each token's grounding is measured
    continued_text: str = ""  # text that the answer continues; limits, stop strings and the usage leave it out
    answer_prefix: tuple[int | str, ...] = ()  # the answer begins with these token ids and texts; they are not output
    ruled_out: tuple[str, ...] = ()  # phrases that the answer must not contain after `answer_prefix`
    cache_salt: str | None = None  # set by the runner: no cache is shared with requests of another salt
    continued_tokens: int = 0  # set by the engine: length of `continued_text`
    bypasses_queue_limit: bool = False  # a part of an accepted request waits in a full queue too

    @property
    def state_updater(self) -> TensorHooks | None:
        """The strategy that folds this request's logits into a state, or None.

        Raises:
            ValueError: `updates_state` is set and the request has no strategy.
        """
        if not self.updates_state:
            return None
        if self.strategy is None:
            raise ValueError("`updates_state` needs a strategy: see `with_strategy`")
        return self.strategy

    def replace(self, **changes: Any) -> GenerateRequest:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def with_branch(self, name: str, prompt: Prompt) -> GenerateRequest:
        """Add a prompt that is decoded in lockstep. Its logits are `Step.branches[name]`.

        Returns:
            A copy of the request.

        Raises:
            ValueError: The name is empty or contains a slash.
        """
        if not name or "/" in name:
            raise ValueError(f"a branch name must not be empty or contain a slash: {name!r}")
        return replace(self, branches={**self.branches, name: prompt})

    def with_state(self, state: StateHandle) -> GenerateRequest:
        """Pass a state to the tensor hooks of the strategy that makes the request."""
        return replace(self, state=state)

    def with_strategy(self, strategy: TensorHooks) -> GenerateRequest:
        """Qualify the names that `strategy` has added. Names of outer strategies are qualified already."""
        return replace(
            self,
            branches={
                name if "/" in name else f"{strategy.name}/{name}": prompt for name, prompt in self.branches.items()
            },
            state=None,
            states=self.states if self.state is None else {**self.states, strategy.name: self.state},
            strategy=(self.strategy or strategy) if self.updates_state else None,
        )


@dataclass(frozen=True, slots=True)
class ProbeRequest:
    """Run one forward pass per prompt, in lockstep, and fold what is captured into a state, layer by layer.

    The strategy's `update_state` does the folding. With `layerwise`, its `head_scales` for a layer scale that layer's
    head outputs in the `main` prompt before the next layer runs. The KV cache of `main` is kept with the state. A
    generation request for the same prompt continues from it.
    """

    prompts: Mapping[str, Prompt]
    main: str
    capture: frozenset[Literal["heads", "attention", "vision_attention", "hidden_states", "attention_updates"]] = (
        frozenset({"heads"})
    )
    layerwise: bool = False
    assigned_strategy: TensorHooks | None = None  # set by the runner
    cache_salt: str | None = None  # set by the runner, as in `GenerateRequest`

    def __post_init__(self) -> None:
        """Check the combination of fields.

        Raises:
            ValueError: `layerwise` is set, and the capture has what only the heads of a layer lead to.
        """
        if self.layerwise and self.captures_late:
            raise ValueError("what a layer or its attention adds is known too late to scale the heads of the layer")

    @property
    def captures_late(self) -> bool:
        """Whether activations of a layer are captured that follow from its head outputs."""
        return bool(self.capture & {"hidden_states", "attention_updates"})

    @property
    def strategy(self) -> TensorHooks:
        """The strategy whose `update_state` and `head_scales` are called.

        Raises:
            ValueError: The request has no strategy.
        """
        if self.assigned_strategy is None:
            raise ValueError("a probe needs a strategy: see `with_strategy`")
        return self.assigned_strategy

    def with_strategy(self, strategy: TensorHooks) -> ProbeRequest:
        """Set the strategy that makes the request."""
        return replace(self, assigned_strategy=strategy)


@dataclass(frozen=True, slots=True)
class RelevanceRequest:
    """Compute how relevant each region of an image is to a text, with the image-text matcher.

    The reply is a `RelevanceMap`.
    """

    image: ImageInput
    text: str
    cache_salt: str | None = None  # set by the runner, as in `GenerateRequest`


@dataclass(frozen=True, slots=True)
class VectorsRequest:
    """Load vectors from the operator's folder: one for each layer.

    The reply is a `StateHandle`. Its state is "vectors", [layers, width] in float32, with zeros for layers that the
    file lacks.
    """

    file: str  # name of a safetensors file in the folder
    param: str  # parameter of the client that names the file, for errors
