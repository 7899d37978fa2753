"""Which of a few settings suits `auto` on this model: tried on scenes that are not reported.

    python -m bench.auto_tuning --base-url http://127.0.0.1:8000 --out runs/study

A setting is worth its least margin: F1 on each split of POPE less that of the best rival there, and CHAIR_i at equal
recall below that of the best rival; nothing if it costs more passes a token than the cheapest contrast. The best is
written into `decoding/strategies/auto.py` by hand.
"""

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from bench.contest import Answered, Said, gap
from bench.study import SHORT, Part, Study
from bench.tuning import scenes

PICTURES = 150
MOST_PASSES = 2.0  # a token, of the cheapest strategy with a branch
RIVALS = ("agla", "dola", "m3id", "sid", "vcd", "vhr")
GRID = {"torn": (0.25, 0.4, 0.6), "blind": (0.5, 1.0), "noise": (0.5, 1.0)}


@dataclass(frozen=True)
class Trial:
    label: str
    f1: list[float]  # points above the best rival, split by split
    invented: float  # points of CHAIR_i above the best rival's, at equal recall
    passes: float  # a token, the larger of the two tasks'

    @property
    def worth(self) -> float:
        return min(*self.f1, -self.invented) if self.passes <= MOST_PASSES else -np.inf


def settings() -> list[str]:
    """Recipes of `auto`."""
    grid = product(*([f"{name}={value:g}" for value in values] for name, values in GRID.items()))
    return [f"auto:{','.join(sorted(each))}" for each in grid]


def trials(pope: Answered, chair: Answered) -> list[Trial]:
    captions = {label: Said.of(chair, label) for label in chair.plan.labels}
    once = np.ones(len(captions["plain"].there))
    curves = {label: said.curve(once) for label, said in captions.items()}
    return [
        Trial(
            label,
            [100 * (f1(pope, part, label) - max(f1(pope, part, rival) for rival in pope.rivals)) for part in range(3)],
            max(gap(curves[label], curves[rival]) for rival in chair.rivals),
            max(passes(run, label) for run in (pope, chair)),
        )
        for label in pope.plan.labels
        if label.startswith("auto")
    ]


def f1(run: Answered, part: int, label: str) -> float:
    return next(row.metrics["f1"].value or 0.0 for row in run.results.parts[part].rows if row.strategy == label)


def passes(run: Answered, label: str) -> float:
    cost = next(cost for cost in run.results.costs if cost.strategy == label)
    return (cost.passes_per_token and cost.passes_per_token.value) or np.inf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where answers are kept")
    parser.add_argument("--concurrency", type=int, default=16)
    chosen = parser.parse_args()
    study = Study(tuple(chosen.base_url.split(",")), chosen.out, chosen.concurrency)
    more = ("--data", str(scenes(study.out, PICTURES)), "--no-controls")
    recipes = ["plain", *RIVALS, "auto", *settings()]
    pope = Answered.of(study.run(Part("pope-auto-tuning", "pope", ("--limit", "300")), recipes, *more))
    chair = Answered.of(study.run(Part("chair-auto-tuning", "chair", SHORT), recipes, *more))
    print("worth, F1 less the best rival's by split, CHAIR_i less the best rival's at equal recall, passes a token")
    for trial in sorted(trials(pope, chair), key=lambda trial: -trial.worth):
        splits = " ".join(f"{margin:+.2f}" for margin in trial.f1)
        print(f"{trial.worth:+.2f} | {splits} | {trial.invented:+.2f} | {trial.passes:.2f} | {trial.label}")


if __name__ == "__main__":
    main()
