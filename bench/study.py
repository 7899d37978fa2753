"""The embedded study: every registered strategy with its controls, greedy and sampled, on the held-out scenes.

    make serve
    python -m bench.study --base-url http://127.0.0.1:8000 --out runs/study --write

Several servers of the same weights, comma-separated, share the pictures of every run. It asks what is registered, and
goes on from what is stored in --out: a strategy that was added since is asked, nothing else is, unless the weights are
others. Defaults are the papers'. The tuned rows take one parameter from a small grid, chosen on other scenes
(`bench/tuning.py`).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx

from bench import study_page
from bench.page import commit
from bench.tuning import tuned
from eval.catalogue import Catalogue, catalogue
from eval.client import api_root

CONTROLS = frozenset({"truncate", "sharpen"})  # the runs add them, matched, where sampling lets them differ
VOTERS = frozenset({"mvp"})  # what they vote on is yes or no
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
    stacks: tuple[str, ...] = ()  # instead of all that is registered: these, beside what they are made of

    def of(self, strategies: Sequence[str]) -> list[str]:
        if self.stacks:
            return list(
                dict.fromkeys(["plain", *(name for stack in self.stacks for name in stack.split("+")), *self.stacks])
            )
        return [each for each in strategies if each not in self.without]


PARTS = (
    Part("pope-greedy", "pope", ("--limit", "500"), with_tuned=True),
    Part("chair-greedy", "chair", SHORT, with_tuned=True, without=VOTERS),
    Part("chair-sampled", "chair", (*SHORT, *SEEDS), without=VOTERS),
    Part("pope-sampled", "pope", ("--limit", "500", *SEEDS)),
    Part("pope-stacks", "pope", ("--limit", "150"), stacks=("agla+vhr", "vdgd+vcd", "mvp+agla+vhr")),
    Part("chair-stacks", "chair", ("--limit", "150", *SHORT), stacks=("agla+vhr", "vcd+vhr", "vdgd+vcd")),
)


@dataclass(frozen=True)
class Study:
    servers: tuple[str, ...]  # each asks a share of the pictures
    out: Path
    concurrency: int

    def run(self, part: Part, recipes: Sequence[str], *more: str) -> Path:
        """The folder of the run. One that the server cannot carry out is left out, and the reason is told."""
        if self._asked(part, recipes, more):
            return self.out / part.name
        kept = [recipe for recipe in recipes if self._asked(part, ["plain", recipe], more)]
        if not self._asked(part, kept, more):
            raise SystemExit(f"{part.name} cannot be run")
        return self.out / part.name

    def _asked(self, part: Part, recipes: Sequence[str], more: Sequence[str]) -> bool:
        print(f"{part.name}: {', '.join(recipes)}", flush=True)
        whole, of = self.out / part.name, len(self.servers)
        shards = [whole] if of == 1 else [self.out / "shards" / f"{part.name}-{k}of{of}" for k in range(1, of + 1)]

        def ask(number: int) -> bool:
            line = ["run", part.task, "--base-url", self.servers[number], "--out", str(shards[number])]
            line += ["--shard", f"{number + 1}/{of}", "--concurrency", str(self.concurrency)]
            return evaluation(*line, "--strategies", ",".join(recipes), *part.options, *more)

        begun = time.monotonic()
        with ThreadPoolExecutor(of) as asking:
            answered = all(list(asking.map(ask, range(of))))
        print(f"{part.name}: {(time.monotonic() - begun) / 60:.1f} minutes", flush=True)
        return answered and (of == 1 or evaluation("merge", *map(str, shards), "--out", str(whole)))

    def registered(self) -> Catalogue:
        return catalogue(got(self.servers[0], "strategies"))

    def state(self) -> dict[str, str]:
        """What answers, and when."""
        weights = {str(got(server, "models")["data"][0]["fingerprint"]) for server in self.servers}
        if len(weights) > 1:
            raise SystemExit(f"the servers have different weights: {', '.join(sorted(weights))}")
        return {
            "weights": weights.pop(),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            **{package: version(package) for package in ("torch", "transformers")},
        }


def evaluation(*arguments: str) -> bool:
    line = [sys.executable, "-m", "eval", *arguments]
    return subprocess.run(line, stdout=subprocess.DEVNULL, check=False).returncode in (0, LOST)


def got(server: str, route: str) -> Any:
    return httpx.get(f"{api_root(server)}/{route}", timeout=60).raise_for_status().json()


def able(known: Catalogue) -> list[str]:
    """Those that the server can run, plain decoding first."""
    names = [entry.name for entry in known.data if not entry.engines or any(engine.runs for engine in entry.engines)]
    return ["plain", *sorted(set(names) - CONTROLS - {"plain"})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000", help="comma-separated")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), help="where answers are kept")
    parser.add_argument("--concurrency", type=int, default=16, help="requests under way at a time, of each server")
    parser.add_argument("--only", help="comma-separated strategies, instead of all that are registered")
    parser.add_argument("--parts", default=",".join(part.name for part in PARTS), help="comma-separated")
    parser.add_argument("--no-tuning", action="store_true", help="without the tuned rows that are not stored yet")
    parser.add_argument("--write", action="store_true", help="into docs/results.md, and the figure beside it")
    chosen = parser.parse_args()
    study = Study(tuple(chosen.base_url.split(",")), chosen.out, chosen.concurrency)
    state = study.state()
    chosen.out.mkdir(parents=True, exist_ok=True)
    (chosen.out / "state.json").write_text(json.dumps(state, indent=1))
    known = study.registered()
    strategies = chosen.only.split(",") if chosen.only else able(known)
    choice_file = chosen.out / f"tuned-{state['weights']}.json"
    choices: dict[str, str] = json.loads(choice_file.read_text()) if choice_file.is_file() else {}
    if not chosen.no_tuning:
        choices |= tuned(study, known, [name for name in strategies if name not in {*choices, *VOTERS}])
        choice_file.write_text(json.dumps(choices, indent=1))
    better = [label for name, label in choices.items() if name in strategies and label != name]
    for part in PARTS:
        if part.name in chosen.parts.split(","):
            study.run(part, [*part.of(strategies), *(better if part.with_tuned else ())])
    if chosen.write:
        study_page.write(chosen.out, choices, state)


if __name__ == "__main__":
    main()
