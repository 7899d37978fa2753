"""Tables of the documentation, generated from the registered strategies."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from decoding import registry
from decoding.engine import Capability
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.settings import HFSettings
from decoding.multimodal.model_families import FAMILIES
from decoding.pipeline.dry_run import DryRun, dry_run
from decoding.registry import find_incompatibility, list_strategies
from decoding.strategy import Step, Strategy
from decoding.vllm_engine.engine import VllmEngine
from decoding.vllm_engine.frontend.checkpoint import SERVED_FAMILIES
from decoding.vllm_engine.settings import VllmSettings

NONE = "none"
RESULTS = Path(__file__).parents[1] / "docs" / "results.md"
DEVIATIONS = re.compile(r"^(?:Deviations|Choices where)[^\n]*:?\n(?:(?!\n).+\n?)*", re.MULTILINE)
VENUE = re.compile(r"\b(?:CVPR|ECCV|ICLR|ICML|NeurIPS|EMNLP|COLING|ACL Findings|ACL) 20\d\d")
# Title, section of results.md, kind of the row and column of the figure.
EFFECTS = (
    ("captions, CHAIR_i", "chair-greedy", "plain", 2),
    ("sampled captions, CHAIR_i", "chair-sampled", "control", 2),
    ("POPE, accuracy", "pope-greedy", "plain", 1),
    ("sampled POPE, accuracy", "pope-sampled", "control", 1),
    ("sampled captions, CHAIR_i", "chair-sampled", "as control", 2),
    ("sampled POPE, accuracy", "pope-sampled", "as control", 1),
    ("captions on fresh scenes, CHAIR_i", "verify", "plain", 1),
    ("captions on fresh scenes, CHAIR_i", "fresh-greedy", "plain", 2),
    ("captions on fresh scenes, recall", "fresh-greedy", "plain", 3),
    ("sampled captions on fresh scenes, CHAIR_i", "fresh-sampled", "control", 2),
)


def build_summary_table() -> str:
    """Build the table of README.md."""
    head = ("strategy", "method", "paper", "rows per step", "extra requests")
    return format_table(
        head, [build_summary_row(name, strategy_class) for name, strategy_class in list_strategies().items()]
    )


def build_full_table() -> str:
    """Build the table of docs/strategies.md with the methods, their costs, and their measured effects."""
    head = (
        "strategy",
        "method",
        "venue, paper",
        "hooks",
        "rows per step",
        "extra requests",
        "engines",
        "families",
        "official code, licence",
        "deviations",
        "measured effect",
    )
    results = RESULTS.read_text()
    rows = [build_full_row(name, strategy_class, results) for name, strategy_class in list_strategies().items()]
    return format_table(head, rows)


def build_full_row(name: str, strategy_class: type[Strategy], results: str) -> tuple[str, ...]:
    """Build a row of `build_full_table`."""
    run, code = dry_run(strategy_class()), strategy_class.official_code
    repository, _, licence = code.partition(", ")
    return (
        f"`{name}`",
        registry.get_summary(strategy_class),
        describe_venue(strategy_class),
        format_names(sorted(strategy_class.list_hooks() - {"needs_branches"})),
        count_rows(strategy_class, run),
        describe_extra_requests(run),
        "; ".join(describe_support(title, run, able) for title, able in collect_engine_capabilities().items()),
        describe_families(run),
        f"[{repository}](https://github.com/{repository}), {licence}" if licence else code,
        f"[{len(list_deviations(strategy_class)[1])}](#deviations-of-{name})"
        if has_deviations(strategy_class)
        else NONE,
        "<br>".join(list_effects(name, results)) or ("the baseline" if name == "plain" else "not measured"),
    )


def build_usage_table() -> str:
    """Build the table of docs/strategies.md with the behaviour of the strategies in requests."""
    head = ("strategy", "branches", "greedy", "sampling", "streaming", "composes with")
    return format_table(
        head, [build_usage_row(name, strategy_class) for name, strategy_class in list_strategies().items()]
    )


def build_usage_row(name: str, strategy_class: type[Strategy]) -> tuple[str, ...]:
    """Build a row of `build_usage_table`."""
    run = dry_run(strategy_class())
    return (
        f"`{name}`",
        format_names(list(run.branches)) + (", can be lazy" if can_be_lazy(strategy_class) else ""),
        "changed" if changes_greedy(strategy_class(), run) else "as `plain`",
        "a vote, with seeds of its own" if run.votes else "yes",
        "one piece" if run.votes else "sentence by sentence" if run.reads_drafts else "token by token",
        describe_composition(name),
    )


def build_deviations() -> str:
    """Build the lists of deviations from the docstrings."""
    sections = []
    for name, strategy_class in list_strategies().items():
        if has_deviations(strategy_class):
            introduction, deviations = list_deviations(strategy_class)
            items = "\n".join(textwrap.fill(each, 120, subsequent_indent="  ") for each in deviations)
            sections.append(f"### Deviations of `{name}`\n\n{textwrap.fill(introduction, 120)}\n\n{items}")
    return "\n\n".join(["", *sections, ""]).removesuffix("\n").removeprefix("\n")


def has_deviations(strategy_class: type[Strategy]) -> bool:
    """Return whether the docstring lists deviations from the paper or the official code."""
    return DEVIATIONS.search(inspect.getdoc(strategy_class) or "") is not None


def list_deviations(strategy_class: type[Strategy]) -> tuple[str, list[str]]:
    """Return the sentence before the deviations of a docstring, and the deviations, each as an item of a list."""
    found = DEVIATIONS.search(inspect.getdoc(strategy_class) or "")
    if found is None:
        return "", []
    introduction, *deviations = re.split(r"\n(?=- )", found[0])
    return " ".join(introduction.split()), [" ".join(each.split()) for each in deviations]


def describe_venue(strategy_class: type[Strategy]) -> str:
    """Describe where the paper appeared, from the docstring, as in "CVPR 2024, arXiv:2311.16922"."""
    source = (inspect.getdoc(strategy_class) or "").partition("Source:")[2].partition("\n\n")[0]
    venue = VENUE.search(source)
    return f"{venue[0]}, {strategy_class.paper}" if venue and strategy_class.paper != NONE else strategy_class.paper


def describe_families(run: DryRun) -> str:
    """Describe the model families of a strategy, by their model types."""
    if "vision_attention" in run.needs:
        return format_names([name for name, family in FAMILIES.items() if family.vision_tower_path])
    if "keep_image_tokens" in run.needs:
        pruned = format_names([name for name, family in FAMILIES.items() if family.supports_token_pruning])
        return f"transformers: {pruned}; vLLM: all"
    return "all"


def build_family_table() -> str:
    """Build the table of docs/add-a-family.md."""
    rows: list[tuple[str, ...]] = [
        (
            family.title,
            f"`{name}`",
            "transformers, vLLM" if name in SERVED_FAMILIES else "transformers",
            str(family.max_images or "any number"),
            "" if family.vision_tower_path else format_names(list_needing("vision_attention")),
            "" if family.supports_token_pruning else format_names(list_needing("keep_image_tokens")),
        )
        for name, family in FAMILIES.items()
    ]
    refused = ("refused for the vision tower", "refused on transformers for lost tokens")
    return format_table(("model", "`model_type`", "engines", "images", *refused), rows)


def list_needing(capability: Capability) -> list[str]:
    """List the strategies that need a capability."""
    return [name for name, each in list_strategies().items() if capability in dry_run(each()).needs]


def list_effects(name: str, results: str) -> list[str]:
    """List the measured effects of a strategy: differences from plain decoding, and from its matched controls."""
    rows = {
        "plain": rf"^\| `{name}` \|.*$",
        "control": rf"^\| `{name}` - (`[^|]+`) \|.*$",
        "as control": rf"^\| `{name}` \(control\) \|.*$",
    }
    effects = []
    for title, section, kind, column in EFFECTS:
        table = results.partition(f"<!-- {section} -->")[2].partition(f"<!-- /{section} -->")[0]
        found = list(re.finditer(rows[kind], table, re.MULTILINE)) if name != "plain" else []
        for row in found if kind == "control" else found[:1]:
            difference = row[0].split(" | ")[column].rpartition("<br>")[2]
            effects.append(f"{title}: {difference}, against {row[1] if kind == 'control' else '`plain`'}")
    return effects


def format_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Format a table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows))


def build_summary_row(name: str, strategy_class: type[Strategy]) -> tuple[str, ...]:
    """Build a row of `build_summary_table`."""
    run = dry_run(strategy_class())
    rows = count_rows(strategy_class, run)
    return f"`{name}`", registry.get_summary(strategy_class), strategy_class.paper, rows, describe_extra_requests(run)


def count_rows(strategy_class: type[Strategy], run: DryRun) -> str:
    """Count the rows per step, as in "2", or in "1 to 2" where branches can be left out."""
    most = 1 + len(run.branches)
    return f"1 to {most}" if strategy_class().has_lazy_branches() else str(most)


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
    """Return the capabilities of the engines with a matcher, attention statistics and steering vectors, by title."""
    hf, vllm = HFEngine(HFSettings("", matcher="")), VllmEngine(VllmSettings("", matcher=""))
    optional: frozenset[Capability] = frozenset({"relevance", "attention_statistics", "vectors"})
    return {"transformers": hf.capabilities | optional, "vLLM": vllm.capabilities | optional}


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
