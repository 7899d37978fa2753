"""`auto` against the strategies that it is made of and all others, from the answers of the study.

A strategy that says less invents less. So captions are also compared after as many mentions as give both strategies the
recall of the one that has less of it: of every caption the first m mentions count, between two m linearly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from eval import manifest
from eval.comparison import Comparison
from eval.folder import Folder
from eval.plan import Plan
from eval.report.wording import chance, interval, number
from eval.results import Results
from eval.sheet import Sheet, sheet
from eval.statistics import CONFIDENCE, Bootstrap
from eval.store import stored
from eval.tasks.task import Task

OURS = "auto"
MOST = 12  # mentions in a caption

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Answered:
    """A run with its answers. Its rivals were asked for with the parameters of their papers, plain decoding too."""

    plan: Plan
    task: Task
    sheet: Sheet
    results: Results

    @classmethod
    def of(cls, folder: Path) -> Answered:
        plan = manifest.read(folder).plan
        task = plan.make_task()
        results = Results.model_validate_json((folder / "results.json").read_bytes())
        answers = stored(Folder(folder).answers)
        return cls(plan, task, sheet(plan, task, plan.questions(task), answers), results)

    @property
    def rivals(self) -> list[str]:
        asked = [each.label for each in self.plan.contenders if each.asked_for and not each.recipe.parameters]
        return [label for label in asked if label != OURS]


def splits(run: Answered) -> Iterable[str]:
    """F1 of `auto` on each split, against the best of the others there."""
    column = next(column for column in run.results.columns if column.name == "f1")
    yield "| split | F1 of `auto` | best of the others | its F1 | `auto` less the best | `auto` less plain |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for part in run.results.parts[:-1]:
        found = {row.strategy: row.metrics["f1"].value or 0.0 for row in part.rows}
        best = max(set(run.rivals) - {"plain"}, key=lambda label: (found[label], label))
        cells = [f"`{best}`", f"{100 * found[best]:.1f}"]
        for rival in (best, "plain"):
            comparison = Comparison(run.sheet, run.task, part.scope, run.plan.contenders, "plain")
            difference = comparison.differences(OURS, rival)["f1"]
            moved = number(difference.value, column, sign=True)
            cells.append(f"{moved} {interval(difference, column, sign=True)}, {chance(difference)}")
        yield f"| {part.scope} | {100 * found[OURS]:.1f} | {' | '.join(cells)} |"


@dataclass(frozen=True)
class Said:
    counts: Floats  # [pictures, MOST, 3] found, invented, mentioned among the first mentions
    there: Floats  # [pictures]

    @classmethod
    def of(cls, run: Answered, label: str) -> Said:
        counts, there = [], []
        for mark in run.sheet.marks[label]:
            mentions = cast("list[tuple[int, int, str, bool]]", mark.detail["mentions"])
            firsts = [mentions[:most] for most in range(1, MOST + 1)]
            counts.append(
                [
                    [
                        len({node for *_, node, real in some if real}),
                        sum(not real for *_, real in some),
                        len(some),
                    ]
                    for some in firsts
                ]
            )
            there.append(mark.counts["there"])
        return cls(np.array(counts, float), np.array(there, float))

    def curve(self, weights: Floats) -> Floats:
        """[MOST, 2] recall and CHAIR_i after so many mentions, in percent; pictures count by their weight."""
        found, invented, mentioned = np.tensordot(weights, self.counts, 1).T
        return 100 * np.stack([found / (weights @ self.there), invented / mentioned], 1)


def gap(ours: Floats, theirs: Floats) -> float:
    recall = min(ours[-1, 0], theirs[-1, 0])
    one, other = (float(np.interp(recall, curve[:, 0], curve[:, 1])) for curve in (ours, theirs))
    return one - other


def at_equal_recall(run: Answered) -> Iterable[str]:
    """One question a picture is asked, so that marks are pictures."""
    ours = Said.of(run, OURS)
    draws = Bootstrap.of(len(ours.there)).weights
    once = np.ones(len(ours.there))
    costs = {cost.strategy: cost.passes_per_token for cost in run.results.costs}
    curves = [ours.curve(weights) for weights in draws]
    yield "| strategy | CHAIR_i | recall | passes a token | CHAIR_i of `auto` less this one's, at equal recall |"
    yield "| --- | --- | --- | --- | --- |"
    for label in [OURS, *run.rivals]:
        theirs = Said.of(run, label)
        recall, invented = theirs.curve(once)[-1]
        passes = costs[label]
        row = f"| `{label}` | {invented:.1f} | {recall:.1f} | {passes.value if passes else 0:.2f} |"
        if label == OURS:
            yield f"{row} |"
            continue
        spread = [gap(one, theirs.curve(weights)) for one, weights in zip(curves, draws, strict=True)]
        low, high = np.quantile(spread, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        yield f"{row} {gap(ours.curve(once), theirs.curve(once)):+.1f} [{low:+.1f}, {high:+.1f}] |"
