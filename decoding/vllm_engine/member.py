"""The part of a request that travels into vLLM's engine core: names and JSON, never a callable or a tensor.

A generation request is a gang: its main prompt and its branches, each an engine request of its own. The main member
carries everything that acts on the answer. A branch carries its name and its gang.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

from decoding.errors import Unsupported
from decoding.registry import list_strategies
from decoding.requests import MAIN
from decoding.tensor_hooks import TensorHooks

EXTRA_ARGS_KEY = "onlyseen"  # in vLLM's SamplingParams.extra_args
MAX_BUILT_STACKS = 1000  # clients choose the parameters, so that there can be any number of stacks


@dataclass(frozen=True, slots=True)
class StrategySpec:
    """Name and parameters of a registered strategy."""

    name: str
    parameters: str  # JSON

    @classmethod
    def from_strategy(cls, strategy: TensorHooks) -> StrategySpec:
        """Describe a strategy.

        Args:
            strategy: Strategy of a registered class.

        Returns:
            The description, from which the engine core builds the strategy again.

        Raises:
            Unsupported: The class is not registered.
        """
        if list_strategies().get(strategy.name) is not type(strategy):
            raise Unsupported(
                f"Strategy '{strategy.name}' is not registered: the vLLM engine finds strategies by name."
            )
        return cls(strategy.name, strategy.model_dump_json())

    def list_hooks(self) -> frozenset[str]:
        """List the tensor hooks that the strategy overrides."""
        return list_strategies()[self.name].list_hooks()

    def build(self) -> TensorHooks:
        """Build the strategy."""
        return list_strategies()[self.name].model_validate_json(self.parameters)


@lru_cache(MAX_BUILT_STACKS)
def build_stack(specs: tuple[StrategySpec, ...]) -> tuple[TensorHooks, ...]:
    """Build the strategies of a stack, which the hooks of all requests with equal specs share."""
    return tuple(spec.build() for spec in specs)


@dataclass(frozen=True, slots=True)
class StateUpdate:
    """`strategy.update_state` folds the raw logits of every token of the answer into the state `handle`."""

    strategy: StrategySpec
    handle: str
    end_token_ids: tuple[int, ...] = ()  # the answer ends with one of them; logits after it are not folded


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """The gang is a probe: `strategy.update_state` folds the activations of its last prompt tokens into `handle`."""

    strategy: StrategySpec
    main: str  # name of the prompt that the head scales act on
    layerwise: bool
    handle: str
    capture: tuple[str, ...] = ()  # kinds of activations beside head outputs


@dataclass(frozen=True, slots=True)
class PruningSpec:
    """The branch sees the image tokens that `strategy.keep_image_tokens` keeps, from the state `handle` if any."""

    strategy: StrategySpec
    handle: str | None


@dataclass(frozen=True, slots=True)
class Member:
    """One engine request of a gang."""

    gang: str
    name: str  # MAIN, or the name of a branch or of a probed prompt
    size: int  # number of members
    is_single_step: bool = False  # all prompts of the gang run in one step, uncut
    stack: tuple[StrategySpec, ...] = ()  # outermost first
    branches: tuple[str, ...] = ()
    states: Mapping[str, str] = field(default_factory=dict)  # strategy -> handle
    first_tokens: Mapping[str, Sequence[int]] = field(default_factory=dict)  # scored text -> tokens that can begin it
    forced_token_ids: tuple[int, ...] = ()  # forced first tokens of the answer
    answer_prefix_length: int = 0  # last tokens of the prompt that belong to the answer
    ruled_out: tuple[tuple[int, ...], ...] = ()  # token sequences that the answer must not contain
    min_tokens: int = 0  # tokens before which the answer does not end, its prefix included
    eos_token_ids: tuple[int, ...] = ()
    grounding_branch: str | None = None
    state_update: StateUpdate | None = None
    probe: ProbeSpec | None = None
    pruning: PruningSpec | None = None  # of a branch

    @property
    def is_main(self) -> bool:
        """Whether this is the member whose tokens are the answer."""
        return self.name == MAIN

    @property
    def is_gang_scheduled(self) -> bool:
        """Whether the member must not be scheduled like a request of its own."""
        return self.size > 1 or self.is_single_step

    def to_extra_args(self) -> dict[str, Any]:
        """Return the member as `SamplingParams.extra_args`."""
        return {EXTRA_ARGS_KEY: asdict(self)}

    @classmethod
    def from_sampling_params(cls, sampling_params: Any) -> Member | None:
        """Read the member from vLLM's sampling parameters. None: the request belongs to no gang."""
        fields = ((sampling_params.extra_args if sampling_params else None) or {}).get(EXTRA_ARGS_KEY)
        if fields is None:
            return None
        update, probe, pruning = fields["state_update"], fields["probe"], fields["pruning"]
        return cls(
            **fields
            | {
                "stack": tuple(StrategySpec(**spec) for spec in fields["stack"]),
                "branches": tuple(fields["branches"]),
                "forced_token_ids": tuple(fields["forced_token_ids"]),
                "eos_token_ids": tuple(fields["eos_token_ids"]),
                "ruled_out": tuple(map(tuple, fields["ruled_out"])),
                "state_update": update
                and StateUpdate(StrategySpec(**update["strategy"]), update["handle"], tuple(update["end_token_ids"])),
                "probe": probe
                and ProbeSpec(
                    **probe | {"strategy": StrategySpec(**probe["strategy"]), "capture": tuple(probe["capture"])}
                ),
                "pruning": pruning and PruningSpec(StrategySpec(**pruning["strategy"]), pruning["handle"]),
            }
        )
