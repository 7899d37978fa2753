"""The tables of the documentation, made from the registered strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from decoding import registry
from decoding.engine import Capability
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.registry import refusal, strategies
from decoding.rehearsal import Rehearsal, rehearse
from decoding.strategy import Step, Strategy
from decoding.vllm_engine.engine import VllmEngine
from decoding.vllm_engine.settings import VllmSettings

NOTHING = "nothing"


def summary() -> str:
    head = ("strategy", "what it does", "paper", "rows a step", "asked before the answer")
    return table(head, [summed_up(name, strategy) for name, strategy in strategies().items()])


def in_full() -> str:
    head = ("strategy", "paper", "branches", "extra passes", "greedy", "sampling", "streaming", "engines")
    return table((*head, "composes with"), [told(name, strategy) for name, strategy in strategies().items()])


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def summed_up(name: str, strategy: type[Strategy]) -> tuple[str, ...]:
    rehearsal = rehearse(strategy())
    most = 1 + len(rehearsal.branches)
    rows = f"1 to {most}" if "wakes" in strategy.hooks() else str(most)
    return f"`{name}`", registry.summary(strategy), strategy.paper, rows, questions(rehearsal)


def told(name: str, strategy: type[Strategy]) -> tuple[str, ...]:
    rehearsal = rehearse(strategy())
    branches = ticked([branch.partition("/")[2] for branch in rehearsal.branches])
    return (
        f"`{name}`",
        strategy.paper,
        f"{branches}, where they matter" if "wakes" in strategy.hooks() else branches,
        questions(rehearsal),
        "changed" if changes_greedy(strategy(), rehearsal) else "as `plain`",
        "a vote, with seeds of its own" if rehearsal.votes else "yes",
        "one piece" if rehearsal.votes else "token by token",
        "; ".join(engine(title, rehearsal, able) for title, able in engines().items()),
        companions(name),
    )


def questions(rehearsal: Rehearsal) -> str:
    return ", ".join(f"{kind}: {count}" for kind, count in rehearsal.questions.items()) or NOTHING


def changes_greedy(strategy: Strategy, rehearsal: Rehearsal) -> bool:
    """Tried on random scores where the strategy knows of nothing else."""
    if rehearsal.needs - {"logits"} or rehearsal.questions:
        return True
    raw = 4 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    after = strategy.logits(Step(raw, raw, {}, {}, torch.zeros(200, 1)))
    return not torch.equal(after.argmax(-1), raw.argmax(-1))


def engines() -> Mapping[str, frozenset[Capability]]:
    """With a matcher."""
    hf, vllm = HFEngine(HFSettings("", matcher="")), VllmEngine(VllmSettings("", matcher=""))
    return {"transformers": hf.capabilities | {"relevance"}, "vLLM": vllm.capabilities | {"relevance"}}


def engine(title: str, rehearsal: Rehearsal, able: frozenset[Capability]) -> str:
    lacking = sorted(rehearsal.needs - able)
    return f"not {title}, which lacks {', '.join(lacking)}" if lacking else title


def companions(name: str) -> str:
    others = [other for other in strategies() if other != name]
    outside = restricted("inside", others, lambda other: refusal(other, name) is None)
    inside = restricted("outside", others, lambda other: refusal(name, other) is None)
    return "; ".join(filter(None, (outside, inside))) or "all"


def restricted(place: str, others: list[str], fits: Callable[[str], bool]) -> str:
    """Where it can stand, or where it cannot, whichever is said in fewer words."""
    yes, no = [other for other in others if fits(other)], [other for other in others if not fits(other)]
    return "" if not no else f"not {place} {ticked(no)}" if len(no) <= len(yes) else f"only {place} {ticked(yes)}"


def ticked(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or NOTHING
