"""The embedded study: every registered strategy with its controls, greedy and sampled, on the held-out scenes.

    make serve
    python -m bench.study --base-url http://127.0.0.1:8000 --out runs/study --write

It asks the server what is registered, and goes on from what is stored in --out: a strategy that was added since is
asked, nothing else is, unless the weights are others. Defaults are the papers'. The tuned rows take one parameter from
a small grid, chosen on other scenes (`bench/tuning.py`).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from bench import study_page
from bench.tuning import tuned
from eval.catalogue import Catalogue, catalogue
from eval.client import api_root

CONTROLS = frozenset({"truncate", "sharpen"})  # the runs add them, matched, where sampling lets them differ
LOST = 3  # exit status: some questions have no answer, and the table is of the others
SEEDS = ("--temperature", "1", "--seeds", "0,1,2")
SHORT = ("--max-tokens", "128")  # five times a usual caption, lest a strategy that never ends takes all the time


@dataclass(frozen=True)
class Part:
    """One run: a table of the page."""

    name: str
    task: str
    options: tuple[str, ...]
    with_tuned: bool = False
    without: frozenset[str] = frozenset()
    only: frozenset[str] = frozenset()  # where there are any

    def of(self, strategies: Sequence[str]) -> list[str]:
        return [each for each in strategies if each not in self.without and (not self.only or each in self.only)]


VOTERS = frozenset({"mvp"})  # what they vote on is yes or no
DEAR = VOTERS | {"code", "vdgd"}  # several passes for every one of an answer that has two tokens

PARTS = (
    Part("pope-greedy", "pope", ("--limit", "500"), with_tuned=True, without=DEAR),
    Part("chair-greedy", "chair", SHORT, with_tuned=True, without=VOTERS),
    Part("chair-sampled", "chair", ("--limit", "30", *SHORT, *SEEDS), without=VOTERS),
    Part("pope-dear", "pope", ("--limit", "30"), only=DEAR | {"plain"}),
    Part("pope-sampled", "pope", ("--limit", "48", *SEEDS), without=DEAR),
)


@dataclass(frozen=True)
class Study:
    base_url: str
    out: Path
    concurrency: int

    def run(self, part: Part, recipes: Sequence[str], *more: str) -> Path:
        """The folder of the run. One that the server cannot carry out is left out, and the reason is told."""
        folder = self.out / part.name
        if self._asked(part, recipes, folder, more):
            return folder
        kept = [recipe for recipe in recipes if self._asked(part, ["plain", recipe], folder, more)]
        if not self._asked(part, kept, folder, more):
            raise SystemExit(f"{part.name} cannot be run")
        return folder

    def _asked(self, part: Part, recipes: Sequence[str], folder: Path, more: Sequence[str]) -> bool:
        line = [sys.executable, "-m", "eval", "run", part.task, "--base-url", self.base_url, "--out", str(folder)]
        line += ["--concurrency", str(self.concurrency), "--strategies", ",".join(recipes), *part.options, *more]
        print(f"{part.name}: {', '.join(recipes)}", flush=True)
        return subprocess.run(line, stdout=subprocess.DEVNULL, check=False).returncode in (0, LOST)

    def registered(self) -> Catalogue:
        return catalogue(self._got("strategies"))

    def state(self) -> dict[str, str]:
        """What answers, and when."""
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
        )
        return {
            "weights": str(self._got("models")["data"][0]["fingerprint"]),
            "commit": described.stdout.strip() or "unknown",
            "date": time.strftime("%Y-%m-%d"),
            **{package: version(package) for package in ("torch", "transformers")},
        }

    def _got(self, route: str) -> Any:
        return httpx.get(f"{api_root(self.base_url)}/{route}", timeout=60).raise_for_status().json()


def able(known: Catalogue) -> list[str]:
    """Those that the server can run, plain decoding first."""
    names = [entry.name for entry in known.data if not entry.engines or any(engine.runs for engine in entry.engines)]
    return ["plain", *sorted(set(names) - CONTROLS - {"plain"})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where answers are kept")
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--only", help="comma-separated strategies, instead of all that are registered")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="comma-separated")
    parser.add_argument("--no-tuning", action="store_true", help="without the tuned rows that are not stored yet")
    parser.add_argument("--write", action="store_true", help="into docs/results.md, and the figure beside it")
    chosen = parser.parse_args()
    study = Study(chosen.base_url, chosen.out, chosen.concurrency)
    state = study.state()
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "state.json").write_text(json.dumps(state, indent=1))
    known = study.registered()
    strategies = chosen.only.split(",") if chosen.only else able(known)
    parts = [part for part in PARTS if part.name in chosen.parts.split(",")]
    for part in parts:
        study.run(part, part.of(strategies))
    choice_file = chosen.out / f"tuned-{state['weights']}.json"
    choices: dict[str, str] = json.loads(choice_file.read_text()) if choice_file.is_file() else {}
    if not chosen.no_tuning:
        choices |= tuned(study, known, [name for name in strategies if name not in {*choices, *VOTERS}])
        choice_file.write_text(json.dumps(choices, indent=1))
    better = [label for name, label in choices.items() if name in strategies and label != name]
    for part in parts:
        if part.with_tuned and better:
            study.run(part, [*part.of(strategies), *better])
    if chosen.write:
        study_page.write(chosen.out, choices, state)


if __name__ == "__main__":
    main()
