"""Tables of the documentation, generated from the registered strategies."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from decoding import registry
from decoding.engine import Capability
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.pipeline.dry_run import DryRun, dry_run
from decoding.registry import find_incompatibility, list_strategies
from decoding.strategy import Step, Strategy
from decoding.vllm_engine.engine import VllmEngine
from decoding.vllm_engine.settings import VllmSettings

NONE = "none"


def build_summary_table() -> str:
    """Build the table of README.md."""
    head = ("strategy", "method", "paper", "rows per step", "extra requests")
    return format_table(
        head, [build_summary_row(name, strategy_class) for name, strategy_class in list_strategies().items()]
    )


def build_full_table() -> str:
    """Build the table of docs/strategies.md."""
    head = (
        "strategy",
        "paper",
        "branches",
        "extra requests",
        "greedy",
        "sampling",
        "streaming",
        "engines",
        "composes with",
    )
    return format_table(
        head, [build_full_row(name, strategy_class) for name, strategy_class in list_strategies().items()]
    )


def format_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Format a table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def build_summary_row(name: str, strategy_class: type[Strategy]) -> tuple[str, ...]:
    """Build a row of `build_summary_table`."""
    run = dry_run(strategy_class())
    most = 1 + len(run.branches)
    rows = f"1 to {most}" if strategy_class().has_lazy_branches() else str(most)
    return f"`{name}`", registry.get_summary(strategy_class), strategy_class.paper, rows, describe_extra_requests(run)


def build_full_row(name: str, strategy_class: type[Strategy]) -> tuple[str, ...]:
    """Build a row of `build_full_table`."""
    run = dry_run(strategy_class())
    return (
        f"`{name}`",
        strategy_class.paper,
        format_names(list(run.branches)) + (", can be lazy" if can_be_lazy(strategy_class) else ""),
        describe_extra_requests(run),
        "changed" if changes_greedy(strategy_class(), run) else "as `plain`",
        "a vote, with seeds of its own" if run.votes else "yes",
        "one piece" if run.votes else "sentence by sentence" if run.reads_drafts else "token by token",
        "; ".join(describe_support(title, run, able) for title, able in collect_engine_capabilities().items()),
        describe_composition(name),
    )


def can_be_lazy(strategy_class: type[Strategy]) -> bool:
    """Return whether branches can be left out at steps that do not need them."""
    return "needs_branches" in strategy_class.list_hooks()


def describe_extra_requests(run: DryRun) -> str:
    """Describe the extra requests, as in "answers: 1"."""
    return ", ".join(f"{label}: {count}" for label, count in run.extra_requests.items()) or NONE


def changes_greedy(strategy: Strategy, run: DryRun) -> bool:
    """Return whether greedy answers change. A strategy of logits alone is tried on random scores."""
    if run.needs - {"logits"} or run.extra_requests:
        return True
    raw = 4 * torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    after = strategy.logits(Step(raw, raw, {}, {}, torch.zeros(200, 1)))
    return not torch.equal(after.argmax(-1), raw.argmax(-1))


def collect_engine_capabilities() -> Mapping[str, frozenset[Capability]]:
    """Return the capabilities of the engines with a matcher, by title."""
    hf, vllm = HFEngine(HFSettings("", matcher="")), VllmEngine(VllmSettings("", matcher=""))
    return {"transformers": hf.capabilities | {"relevance"}, "vLLM": vllm.capabilities | {"relevance"}}


def describe_support(title: str, run: DryRun, capabilities: frozenset[Capability]) -> str:
    """Describe whether an engine supports a strategy."""
    missing = sorted(run.needs - capabilities)
    return f"not {title}, which lacks {', '.join(missing)}" if missing else title


def describe_composition(name: str) -> str:
    """Describe the strategies that a strategy composes with."""
    others = [other for other in list_strategies() if other != name]
    inside = describe_restriction("inside", others, lambda other: find_incompatibility(other, name) is None)
    outside = describe_restriction("outside", others, lambda other: find_incompatibility(name, other) is None)
    return "; ".join(filter(None, (inside, outside))) or "all"


def describe_restriction(position: str, others: list[str], is_compatible: Callable[[str], bool]) -> str:
    """Describe the strategies that can or cannot be at a position, whichever list is shorter."""
    yes, no = [each for each in others if is_compatible(each)], [each for each in others if not is_compatible(each)]
    if not no:
        return ""
    return f"not {position} {format_names(no)}" if len(no) <= len(yes) else f"only {position} {format_names(yes)}"


def format_names(names: list[str]) -> str:
    """Join names in backticks."""
    return ", ".join(f"`{name}`" for name in names) or NONE
