"""What travels with each row of a gang into the engine core: names and JSON, never a callable or a tensor.

One ask is a gang: its main prompt and its branches, each an engine request of its own. The main member carries what
acts on the answer; the others only say whose they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from decoding.ask import MAIN
from decoding.errors import Unsupported
from decoding.registry import strategies
from decoding.strategy import Strategy

KEY = "onlyseen"  # in vLLM's SamplingParams.extra_args


@dataclass(frozen=True, slots=True)
class Spelled:
    """A registered strategy as its name and its parameters."""

    name: str
    parameters: str  # JSON

    @classmethod
    def of(cls, strategy: Strategy) -> Spelled:
        """Raises:
        Unsupported: the strategy is not registered, so that the engine core could not build it again.
        """
        if strategies().get(strategy.name) is not type(strategy):
            raise Unsupported(
                f"Strategy '{strategy.name}' is not registered: the vLLM engine knows strategies by name."
            )
        return cls(strategy.name, strategy.model_dump_json())

    def build(self) -> Strategy:
        return strategies()[self.name].model_validate_json(self.parameters)


@dataclass(frozen=True, slots=True)
class Digest:
    """`strategy.digest` folds the raw logits of every token of the answer into the memory `handle`."""

    strategy: Spelled
    handle: str


@dataclass(frozen=True, slots=True)
class Probing:
    """The gang is a probe: what its last prompt tokens show, layer by layer, goes into the memory `handle`."""

    owner: Spelled
    main: str  # name of the member that the factors act on
    layerwise: bool
    handle: str


@dataclass(frozen=True, slots=True)
class Member:
    """One engine request of a gang."""

    gang: str
    name: str  # MAIN, or the branch's or the probed prompt's
    size: int  # members in all
    whole: bool = False  # all prompts of the gang run in one step, uncut
    stack: tuple[Spelled, ...] = ()  # outermost first
    branches: tuple[str, ...] = ()
    memories: Mapping[str, str] = field(default_factory=dict)  # owner -> handle
    choices: Mapping[str, Sequence[int]] = field(default_factory=dict)  # choice -> tokens that it may begin with
    begin: tuple[int, ...] = ()  # tokens that the answer begins with, whatever the scores
    least: int = 0  # tokens before which the answer does not end
    ends: tuple[int, ...] = ()  # tokens that would end it
    compare: str | None = None  # branch against which the grounding of each token is measured
    digest: Digest | None = None
    probing: Probing | None = None

    @property
    def is_main(self) -> bool:
        return self.name == MAIN

    @property
    def is_bound(self) -> bool:
        """It must not be scheduled like any other request."""
        return self.size > 1 or self.whole

    def spell(self) -> dict[str, Any]:
        """As `SamplingParams.extra_args` takes it."""
        return {KEY: asdict(self)}

    @classmethod
    def of(cls, sampling_params: Any) -> Member | None:
        """The member that a request's sampling parameters speak of; None: the request is of no gang."""
        spelled = ((sampling_params.extra_args if sampling_params else None) or {}).get(KEY)
        if spelled is None:
            return None
        digest, probing = spelled["digest"], spelled["probing"]
        return cls(
            **spelled
            | {
                "stack": tuple(Spelled(**one) for one in spelled["stack"]),
                "branches": tuple(spelled["branches"]),
                "begin": tuple(spelled["begin"]),
                "ends": tuple(spelled["ends"]),
                "digest": digest and Digest(Spelled(**digest["strategy"]), digest["handle"]),
                "probing": probing and Probing(**probing | {"owner": Spelled(**probing["owner"])}),
            }
        )
