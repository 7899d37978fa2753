"""One ask on its way through the batch: its prompts, what it has said, and what it has cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from decoding.answer import Token
from decoding.ask import MAIN, Ask
from decoding.constraint import Constraints
from decoding.detokenizer import Vocabulary
from decoding.encoder import Encoded
from decoding.errors import BadRequest, Unsupported
from decoding.hf_engine.model import Model, Prefilled
from decoding.hf_engine.sampler import Chooser
from decoding.onion import factors
from decoding.prompt import Prompt
from decoding.saying import Ranked, Saying
from decoding.strategy import Captured, Exits, Strategy, Tensors


@dataclass(frozen=True, slots=True)
class Remembered:
    """What a memory handle stands for. After a probe, its main prompt is ready to go on from."""

    tensors: Tensors
    prompt: Prompt | None = None
    prefilled: Prefilled | None = None
    factors: Tensor | None = None  # [layers, heads] that scaled the heads of `prefilled`


class Request:
    """Made by the encoding thread, then the worker's alone. `prompts`: MAIN and the branches by name, encoded."""

    def __init__(
        self,
        ask: Ask,
        prompts: Mapping[str, Encoded],
        memories: Mapping[str, Remembered],
        model: Model,
        words: Vocabulary,
        constraints: Constraints,
    ) -> None:
        self.ask = ask
        self.prompts = prompts
        self.memories = memories
        kept = {owner: remembered.tensors for owner, remembered in memories.items()}
        scales = factors(ask.stack, kept, (model.layers, model.tap.heads))
        self.factors = None if scales is None else scales.to(model.device, model.dtype)  # [layers, heads]
        self.attends = any("attend" in strategy.hooks() for strategy in ask.stack)
        self.exits = exits(ask, model)  # owner -> where it listens
        self.early: Mapping[str, Tensor] = {}  # owner -> [exits, vocab] at this step
        self.failure: Exception | None = None  # of a strategy inside the model
        self.pictures = numbered(prompts[MAIN].ids.to(model.device), model.picture_token)  # [prompt tokens]
        self.narrowed = narrowed(ask, prompts, memories, model)  # branch -> [layers, prompt tokens] true where seen
        self.firsts = {choice: model.encoder.first_tokens(choice).to(model.device) for choice in ask.choices}
        self.chooser = Chooser(ask.sampling, prompts[MAIN].ids.to(model.device), model.eos, model.vocab)
        grammar = ask.sampling.grammar
        self.constraint = None if grammar is None else constraints.constraint(grammar)
        self.dormant = frozenset(name for name in ask.branches if any(sleeps(name, owner) for owner in ask.stack))
        self.digested: Tensors = {}
        room = min(ask.sampling.max_tokens or model.context, model.context - max(map(len, prompts.values())))
        eos, tokenizer = frozenset(model.eos.tolist()), model.encoder.tokenizer
        self.saying = Saying(ask, prompts[MAIN], room, eos, words, tokenizer)
        self.spent = self.saying.spent
        # As JSON, not as strategies: one with a list among its parameters cannot be hashed.
        self.stack = tuple((type(strategy), strategy.model_dump_json()) for strategy in ask.stack)
        kinds = tuple(strategy.kind() for strategy in ask.stack)
        self.kind = (kinds, tuple(sorted(ask.branches)), shapes(memories))  # one kind shares its hooks' calls

    @property
    def awake(self) -> dict[str, Prompt]:
        """The prompts that have a row in every step, by name."""
        everyone = {MAIN: self.ask.prompt, **self.ask.branches}
        return {name: prompt for name, prompt in everyone.items() if name not in self.dormant}

    def reusable(self) -> Prefilled | None:
        """The main prompt as a probe left it, when that is what this ask's strategies would make of it."""
        if self.attends or self.exits:
            return None
        for remembered in self.memories.values():
            if remembered.prompt == self.ask.prompt and same(remembered.factors, self.factors):
                return remembered.prefilled
        return None

    def is_plain(self, name: str) -> bool:
        """Nothing that is particular to its strategies happens while this prompt goes through the model."""
        if name != MAIN:
            return name not in self.narrowed
        return self.factors is None and not self.attends and not self.exits

    def remember(self, raw: Tensor) -> None:
        """Fold the raw logits, [vocab], of this step into the memory that the ask wants digested."""
        if self.ask.digest is not None:
            self.digested = self.ask.digest.digest(self.digested, Captured(logits=raw))

    def say(self, token: int, scores: Tensor, logits: Mapping[str, Tensor], changed: bool) -> Token:
        """Take the chosen token. `scores`, and `logits` by prompt name: [vocab] each.

        Raises:
            BadRequest: the grammar is too complicated to go on with.
        """
        self.chooser.chose(token)
        said = self.saying.say(token, changed, self._ranked(token, scores), self._grounding(token, logits))
        if self.constraint is not None and said.end is None:
            self.constraint.take(token)
        return said

    def weigh(self, scores: Tensor, changed: bool) -> Token:
        """The log-probabilities of the ask's choices, each under the tokens that it may begin with."""
        logprobs = scores.log_softmax(-1)
        weighed = {choice: float(logprobs[ids].logsumexp(-1)) for choice, ids in self.firsts.items()}
        return self.saying.weigh(int(scores.argmax()), changed, weighed)

    def _ranked(self, token: int, scores: Tensor) -> Ranked:
        if self.ask.sampling.top_logprobs is None:
            return ()
        logprobs = scores.log_softmax(-1)
        best = logprobs.topk(self.ask.sampling.top_logprobs)
        return [(token, float(logprobs[token])), *zip(best.indices.tolist(), best.values.tolist(), strict=True)]

    def _grounding(self, token: int, logits: Mapping[str, Tensor]) -> float | None:
        if self.ask.compare is None:
            return None
        seeing, blind = (logits[name].log_softmax(-1)[token] for name in (MAIN, self.ask.compare))
        return float(seeing - blind)


def sleeps(branch: str, owner: Strategy) -> bool:
    return "wakes" in owner.hooks() and branch.startswith(f"{owner.name}/")


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return torch.equal(one, other) if one is not None and other is not None else one is other


def shapes(memories: Mapping[str, Remembered]) -> tuple[object, ...]:
    """Whose memories there are, of what: those of one kind can be stacked."""
    return tuple(
        (owner, name, tensor.shape) for owner in sorted(memories) for name, tensor in memories[owner].tensors.items()
    )


def exits(ask: Ask, model: Model) -> dict[str, Exits]:
    """Owner -> where it listens.

    Raises:
        BadRequest: the model has no such layer.
    """
    wanted = {strategy.name: strategy.exits(model.layers, model.tied) for strategy in ask.stack}
    for owner, found in wanted.items():
        if max(found.layers, default=0) >= model.layers:
            raise BadRequest(
                f"'{owner}' listens after layer {max(found.layers)}; the last before the end is {model.layers - 1}.",
                param=f"decoding.{owner}",
            )
    return {owner: found for owner, found in wanted.items() if found.layers}


def narrowed(
    ask: Ask, prompts: Mapping[str, Encoded], memories: Mapping[str, Remembered], model: Model
) -> dict[str, Tensor]:
    """Raises:
    Unsupported: prompts of this family cannot lose tokens half-way.
    """
    found: dict[str, Tensor] = {}
    for strategy in ask.stack:
        memory = memories[strategy.name].tensors if strategy.name in memories else {}
        seen = strategy.narrow(memory)
        if seen is None:
            continue
        if model.narrowing is None:
            raise Unsupported(
                f"'{strategy.name}' drops tokens inside the model, which this family cannot do.",
                param="decoding.strategy",
                code="unsupported",
            )
        for name in ask.branches:
            if name.startswith(f"{strategy.name}/"):
                pictures = numbered(prompts[name].ids.to(model.device), model.picture_token)
                found[name] = seen[:, pictures.clamp(min=0)] | (pictures < 0)
    return found


def numbered(ids: Tensor, picture_token: int) -> Tensor:
    """[length] the tokens of pictures counted from 0; -1 at text."""
    visual = ids == picture_token
    return torch.where(visual, visual.cumsum(0) - 1, -1)
