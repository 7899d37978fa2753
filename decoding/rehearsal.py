"""What a stack needs and costs, found by running its text side on a blank picture against canned replies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from decoding.answer import Alternative, Answer, End, Heat, Memory, Token, Usage
from decoding.ask import Ask, Picture, Probe, Prompt, Relevance
from decoding.engine import Capability
from decoding.strategy import Effect, Strategy

QUESTION, SIDE = "Is there a cat in the image?", 512  # of a picture that is worth cutting into parts
HOOKS: frozenset[Capability] = frozenset({"logits", "heads", "attend", "narrow", "exits"})  # are capabilities


@dataclass(frozen=True, slots=True)
class Rehearsal:
    needs: frozenset[Capability]
    branches: tuple[str, ...]  # of the final ask, each a row more per step
    questions: Mapping[str, int]  # asked on the way: "answers", "probed prompts", "relevance maps"
    votes: bool = False  # ends with an answer of its own, which cannot be streamed


def rehearse(strategy: Strategy) -> Rehearsal:
    """A strategy that searches until it is sure asks more or fewer questions on a real picture."""
    effects, outcome = perform(strategy)
    asks = [effect for effect in effects if isinstance(effect, Ask)]
    final = [outcome] if isinstance(outcome, Ask) else []
    needs: set[Capability] = set()
    for ask in (*asks, *final):
        needs |= {"branches"} if ask.branches else set()
        needs |= {"choices"} if ask.choices else set()
        needs |= {"begin"} if ask.sampling.begin else set()
        needs |= {"logprobs"} if ask.sampling.top_logprobs is not None else set()
        needs |= {"digest"} if ask.digest else set()
        needs |= {"noise"} if any(picture.noise for prompt in prompts(ask) for picture in prompt.pictures) else set()
    needs |= HOOKS & strategy.hooks()
    needs |= {"probe"} if any(isinstance(effect, Probe) for effect in effects) else set()
    captured = frozenset[str]().union(*(effect.capture for effect in effects if isinstance(effect, Probe)))
    needs |= {"vision"} if "vision" in captured else set()
    needs |= {"attention"} if "attention" in captured else set()
    needs |= {"relevance"} if any(isinstance(effect, Relevance) for effect in effects) else set()
    counts = {
        "answers": len(asks),
        "probed prompts": sum(len(effect.prompts) for effect in effects if isinstance(effect, Probe)),
        "relevance maps": sum(isinstance(effect, Relevance) for effect in effects),
    }
    branches = tuple(name for ask in final for name in ask.branches)
    asked = {kind: count for kind, count in counts.items() if count}
    return Rehearsal(frozenset(needs), branches, asked, votes=isinstance(outcome, Answer))


def perform(strategy: Strategy) -> tuple[list[Ask | Probe | Relevance], Ask | Answer]:
    program, reply = strategy.run(Ask(Prompt.of(QUESTION, Picture(Image.new("RGB", (SIDE, SIDE)))))), None
    effects: list[Ask | Probe | Relevance] = []
    while True:
        try:
            effect = program.send(reply)
        except StopIteration as stop:
            return effects, stop.value
        effects += effect if isinstance(effect, list) else [effect]
        reply = canned(effect)


def canned(effect: Effect) -> Any:
    match effect:
        case Ask():
            choices = {choice: np.log(0.5).item() for choice in effect.choices}
            end = End("stop", Usage(), Memory("rehearsal") if effect.digest else None, choices)
            several = effect.sampling.top_logprobs or 0
            top = [Alternative(number, "A", b"A", -np.log(several).item()) for number in range(several)]
            return Answer("Yes.", (Token(0, "Yes.", top=tuple(top), end=end),), end)
        case Probe():
            return Memory("rehearsal")
        case Relevance():
            return Heat(np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4), similarity=0.5, side=32)
        case list():
            return [canned(ask) for ask in effect]


def prompts(ask: Ask) -> tuple[Prompt, ...]:
    return (ask.prompt, *ask.branches.values())
