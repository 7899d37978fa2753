"""What an answer costs, from the receipts that came with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from eval.metrics import Floats, Metric, ratios
from eval.question import Mark
from eval.results import Cost, Estimate
from eval.sheet import Sheet
from eval.statistics import Bootstrap
from eval.store import Answer

PASSES = Metric("passes_per_token", "Passes/token", {"passes": 1}, {"steps": 1}, better="lower", percent=False)
SPEED = Metric("tokens_per_second", "Tokens/s", {"steps": 1}, {"seconds": 1}, percent=False)


def costs(sheet: Sheet, reference: str) -> list[Cost]:
    found = [cost(sheet, label) for label in sheet.answers]
    plain = next((each.tokens_per_second.value for each in found if each.strategy == reference), None)
    for each in found:
        if plain and each.tokens_per_second.value:
            each.slowdown = plain / each.tokens_per_second.value
    return found


def cost(sheet: Sheet, label: str) -> Cost:
    places = sheet.distinct(range(len(sheet.units)))
    answers = [sheet.answers[label][at] for at in places]
    spent = [tally(answer) for answer in answers]
    both = ratios((PASSES, SPEED))
    marks = dict(zip(places, (Mark(each) for each in spent), strict=True))
    counts = of_pictures(sheet, places, marks, both.names)
    passes, speed = Bootstrap.of(len(counts)).values(counts, both)
    return Cost(
        strategy=label,
        answers=len(answers),
        tokens=int(sum(each["steps"] for each in spent)),
        passes_per_token=Estimate.of(passes) if any("passes" in each for each in spent) else None,
        first_token=median(waits) if (waits := [w for a in answers if (w := first_token(a)) is not None]) else None,
        tokens_per_second=Estimate.of(speed),
    )


def of_pictures(sheet: Sheet, places: Sequence[int], marks: Mapping[int, Mark], names: Sequence[str]) -> Floats:
    table = Sheet(sheet.units, {}, {"": [marks.get(at, Mark({})) for at in range(len(sheet.units))]}, {})
    return table.counts("", places, names)


def tally(answer: Answer) -> dict[str, float]:
    receipt: dict[str, Any] = answer.receipt or {}
    timings = receipt.get("timings", {})
    counts = {
        "steps": float(receipt.get("steps", answer.tokens or 0)),
        "seconds": float(timings.get("total", answer.seconds)),
    }
    if "forward_passes" in receipt:
        counts["passes"] = float(receipt["forward_passes"])
    return counts


def first_token(answer: Answer) -> float | None:
    receipt: dict[str, Any] = answer.receipt or {}
    timings = receipt.get("timings", {})
    if not {"total", "decode"} <= timings.keys():
        return None
    return max(float(timings["total"] - timings["decode"] - timings.get("queue", 0.0)), 0.0)
