"""The runs of the study of the embedded model, and their execution by the evaluation."""

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

from bench.harness.docs_page import describe_commit
from eval.runs.client import build_api_root
from eval.runs.strategy_catalog import StrategyCatalog, parse_catalog

VOTERS = frozenset({"mvp"})  # they vote on yes or no and write no captions
EXIT_INCOMPLETE = 3  # exit status of a run with missing answers; its table holds the others
SAMPLING_FLAGS = ("--temperature", "1", "--seeds", "0,1,2")
# One seed of 900 questions: each further one takes as long as half of the sampled captions.
POPE_SAMPLING_FLAGS = ("--limit", "300", "--temperature", "1", "--seeds", "0")
# Five times a usual caption. It bounds the time of a strategy that never ends a caption.
MAX_TOKENS_FLAGS = ("--max-tokens", "128")


@dataclass(frozen=True)
class StudyPart:
    """One run of the study, which is one table of the report."""

    name: str
    task: str
    options: tuple[str, ...]
    with_tuned: bool = False
    without: frozenset[str] = frozenset()
    stacks: tuple[str, ...] = ()  # if given, these and their members run instead of all registered strategies

    def select_strategies(self, strategies: Sequence[str]) -> list[str]:
        """Return the strategies of this run: those that can take part, or the stacks and their members."""
        if self.stacks:
            return list(
                dict.fromkeys(["plain", *(name for stack in self.stacks for name in stack.split("+")), *self.stacks])
            )
        return [name for name in strategies if name not in self.without]


PARTS = (
    StudyPart("pope-greedy", "pope", ("--limit", "500"), with_tuned=True),
    StudyPart("chair-greedy", "chair", MAX_TOKENS_FLAGS, with_tuned=True, without=VOTERS),
    StudyPart("chair-sampled", "chair", (*MAX_TOKENS_FLAGS, *SAMPLING_FLAGS), without=VOTERS),
    StudyPart("pope-sampled", "pope", POPE_SAMPLING_FLAGS),
    StudyPart("pope-stacks", "pope", ("--limit", "150"), stacks=("agla+vhr", "vdgd+vcd", "mvp+agla+vhr")),
    StudyPart(
        "chair-stacks", "chair", ("--limit", "150", *MAX_TOKENS_FLAGS), stacks=("agla+vhr", "vcd+vhr", "vdgd+vcd")
    ),
)


@dataclass(frozen=True)
class Study:
    """The servers and the output folder of the study."""

    servers: tuple[str, ...]  # each runs a share of the images
    out: Path
    concurrency: int

    def run(self, part: StudyPart, specs: Sequence[str], *options: str) -> Path:
        """Run a part; strategies that the server cannot run are left out.

        Args:
            part: The part.
            specs: Strategies with their parameters.
            options: Further options of the evaluation.

        Returns:
            Folder of the run.

        Raises:
            SystemExit: The part cannot run at all.
        """
        if self._run_part(part, specs, options):
            return self.out / part.name
        runnable = [spec for spec in specs if self._run_part(part, ["plain", spec], options)]
        if not self._run_part(part, runnable, options):
            raise SystemExit(f"{part.name} cannot run")
        return self.out / part.name

    def _run_part(self, part: StudyPart, specs: Sequence[str], options: Sequence[str]) -> bool:
        print(f"{part.name}: {', '.join(specs)}", flush=True)
        out, shard_count = self.out / part.name, len(self.servers)
        shards = [self.out / "shards" / f"{part.name}-{k}of{shard_count}" for k in range(1, shard_count + 1)]
        shards = [out] if shard_count == 1 else shards

        def run_shard(number: int) -> bool:
            command = ["run", part.task, "--base-url", self.servers[number], "--out", str(shards[number])]
            command += ["--shard", f"{number + 1}/{shard_count}", "--concurrency", str(self.concurrency)]
            return run_eval_command(*command, "--strategies", ",".join(specs), *part.options, *options)

        started_at = time.monotonic()
        with ThreadPoolExecutor(shard_count) as executor:
            is_complete = all(list(executor.map(run_shard, range(shard_count))))
        print(f"{part.name}: {(time.monotonic() - started_at) / 60:.1f} minutes", flush=True)
        return is_complete and (shard_count == 1 or run_eval_command("merge", *map(str, shards), "--out", str(out)))

    def fetch_registry(self) -> StrategyCatalog:
        """Fetch the strategies of the first server."""
        return parse_catalog(get_json(self.servers[0], "strategies"))

    def describe_servers(self) -> dict[str, str]:
        """Describe the weights, the commit and the versions.

        Returns:
            Values by name.

        Raises:
            SystemExit: The servers have different weights.
        """
        weights = {str(get_json(server, "models")["data"][0]["fingerprint"]) for server in self.servers}
        if len(weights) > 1:
            raise SystemExit(f"The servers have different weights: {', '.join(sorted(weights))}")
        return {
            "weights": weights.pop(),
            "commit": describe_commit(),
            "date": time.strftime("%Y-%m-%d"),
            **{package: version(package) for package in ("torch", "transformers")},
        }


def run_eval_command(*arguments: str) -> bool:
    """Run the evaluation; missing answers count as success."""
    command = [sys.executable, "-m", "eval", *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode in (0, EXIT_INCOMPLETE)


def get_json(server: str, route: str) -> Any:
    """Fetch a route of a server."""
    return httpx.get(f"{build_api_root(server)}/{route}", timeout=60).raise_for_status().json()
