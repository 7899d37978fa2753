"""Cost of each strategy, from the receipts of its answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from eval.analysis.score_table import ScoreTable
from eval.core.answer_store import StoredAnswer
from eval.core.metrics import Floats, Metric, RatioMetrics
from eval.core.results import Estimate, StrategyCost
from eval.core.statistics import Bootstrap
from eval.core.task import Score

PASSES = Metric("passes_per_token", "Passes/token", {"passes": 1}, {"steps": 1}, better="lower", percent=False)
SPEED = Metric("tokens_per_second", "Tokens/s", {"steps": 1}, {"seconds": 1}, percent=False)


def compute_costs(table: ScoreTable, reference: str) -> list[StrategyCost]:
    """Compute the cost of every arm, and its slowdown relative to the reference."""
    costs = [_compute_cost(table, label) for label in table.answers]
    plain = next((each.tokens_per_second.value for each in costs if each.strategy == reference), None)
    for each in costs:
        if plain and each.tokens_per_second.value:
            each.slowdown = plain / each.tokens_per_second.value
    return costs


def _compute_cost(table: ScoreTable, label: str) -> StrategyCost:
    # Every strategy has the answers of plain decoding to questions without an image.
    with_image = [index for index, sample in enumerate(table.samples) if sample.question.image]
    indices = table.find_unique_indices(with_image or range(len(table.samples)))
    answers = [table.answers[label][index] for index in indices]
    usages = [_read_usage(answer) for answer in answers]
    ratios = RatioMetrics.from_metrics((PASSES, SPEED))
    counts = _sum_by_image(table, indices, dict(zip(indices, usages, strict=True)), ratios.count_names)
    passes, speed = Bootstrap.draw(len(counts)).estimate(counts, ratios)
    first_tokens = [seconds for answer in answers if (seconds := _read_first_token(answer)) is not None]
    return StrategyCost(
        strategy=label,
        answers=len(answers),
        tokens=int(sum(usage["steps"] for usage in usages)),
        passes_per_token=Estimate.from_interval(passes) if any("passes" in usage for usage in usages) else None,
        first_token=median(first_tokens) if first_tokens else None,
        tokens_per_second=Estimate.from_interval(speed),
    )


def _sum_by_image(
    table: ScoreTable, indices: Sequence[int], usages: Mapping[int, Mapping[str, float]], names: Sequence[str]
) -> Floats:
    scores = [Score(usages.get(index, {})) for index in range(len(table.samples))]
    return ScoreTable(table.samples, {}, {"": scores}, {}).sum_counts("", indices, names)


def _read_usage(answer: StoredAnswer) -> dict[str, float]:
    """Read steps, seconds and forward passes. Without a receipt, tokens and time are those of the client."""
    receipt: dict[str, Any] = answer.receipt or {}
    timings = receipt.get("timings", {})
    usage = {
        "steps": float(receipt.get("steps", answer.tokens or 0)),
        "seconds": float(timings.get("total", answer.seconds)),
    }
    if "forward_passes" in receipt:
        usage["passes"] = float(receipt["forward_passes"])
    return usage


def _read_first_token(answer: StoredAnswer) -> float | None:
    """Return the seconds to the first token, without the time in the queue."""
    receipt: dict[str, Any] = answer.receipt or {}
    timings = receipt.get("timings", {})
    if not {"total", "decode"} <= timings.keys():
        return None
    return max(float(timings["total"] - timings["decode"] - timings.get("queue", 0.0)), 0.0)
