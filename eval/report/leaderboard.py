"""The leaderboard: strategies of several runs and models in one table for each set of questions.

Numbers are comparable if questions, prompts, images and scorer agree. So runs share a table only if these do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined

from eval.core.hashing import hash_json
from eval.core.results import Difference, Estimate, MetricColumn, Results, ScopeResult, StrategyCost
from eval.report import formatting
from eval.runs.manifest import Manifest

HASH_LENGTH = 12


@dataclass(frozen=True)
class LeaderboardRun:
    """A finished run.

    Attributes:
        name: Name of its folder.
        report: Link to its report, empty if there is none.
        results: Its results.
        manifest: Its manifest.
    """

    name: str
    report: str
    results: Results
    manifest: Manifest

    @property
    def scope(self) -> ScopeResult:
        """All scopes together, or the last one."""
        return self.results.scopes[-1]

    @property
    def decoding(self) -> str:
        """Greedy, or temperature and seeds."""
        if self.results.greedy:
            return "greedy"
        seeds = ", ".join(map(str, self.results.seeds))
        return f"temperature {self.manifest.plan.sampling.temperature:g}, seeds {seeds}"

    @property
    def questions_hash(self) -> str:
        """The hash of all that the scores depend on beside the answers: questions, images, labels and scorer."""
        manifest, options = self.manifest, self.manifest.plan.options
        scored = sorted(value for name, value in manifest.files.items())
        settings = options.model_dump(mode="json", include={"parser", "variant", "similarity", "judge"})
        return hash_json([manifest.ids, manifest.images, manifest.prompts, scored, settings])[:HASH_LENGTH]


@dataclass(frozen=True)
class LeaderboardCell:
    """A metric of a row: its value for sorting, its texts, and the difference to plain decoding of the same run."""

    value: float | None
    text: str
    interval: str = ""
    change: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class LeaderboardRow:
    """A strategy of a run, or a constant answer.

    Attributes:
        strategy: Label of the strategy, or the constant answer.
        model: The model, empty for a constant answer.
        decoding: Greedy, or temperature and seeds.
        run: The run, None for a constant answer.
        cells: The metrics, then passes per token and time relative to plain.
        is_best: Whether no row of a model has a better value of the first primary metric.
    """

    strategy: str
    model: str
    decoding: str
    run: LeaderboardRun | None
    cells: Sequence[LeaderboardCell]
    is_best: bool = False


@dataclass(frozen=True)
class LeaderboardTable:
    """The rows about one set of questions, the best one first."""

    title: str
    size: str
    hash: str
    columns: Sequence[MetricColumn]
    rows: Sequence[LeaderboardRow]


def render_leaderboard(runs: Sequence[LeaderboardRun]) -> str:
    """Render the page."""
    environment = Environment(
        loader=PackageLoader("eval.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    tables = build_tables(runs)
    models = list(dict.fromkeys(run.results.model for run in runs))
    return environment.get_template("leaderboard.html.j2").render(tables=tables, models=models, runs=runs)


def build_tables(runs: Sequence[LeaderboardRun]) -> list[LeaderboardTable]:
    """Build a table for each set of questions, in the order of the runs."""
    groups: dict[tuple[str, str], list[LeaderboardRun]] = {}
    for run in runs:
        if run.results.scopes:
            groups.setdefault((run.results.title, run.questions_hash), []).append(run)
    return [_build_table(title, digest, members) for (title, digest), members in groups.items()]


def _build_table(title: str, digest: str, runs: Sequence[LeaderboardRun]) -> LeaderboardTable:
    columns = runs[0].results.columns
    leading = next((column for column in columns if column.primary), columns[0])
    index = columns.index(leading)
    rows = [row for run in runs for row in _build_rows(run, columns)]
    values = [row.cells[index].value for row in rows]
    known = [value for value in values if value is not None]
    sign = -1.0 if leading.better == "lower" else 1.0
    best = max((sign * value for value in known), default=None)
    marked = [
        replace(row, is_best=value is not None and sign * value == best)
        for row, value in zip(rows, values, strict=True)
    ]
    marked += _build_constant_rows(runs[0], columns)
    worst = float("-inf")
    marked.sort(key=lambda row: worst if (value := row.cells[index].value) is None else sign * value, reverse=True)
    size = formatting.describe_size(runs[0].scope, runs[0].results)
    return LeaderboardTable(title, size, digest, columns, marked)


def _build_rows(run: LeaderboardRun, columns: Sequence[MetricColumn]) -> list[LeaderboardRow]:
    """Build the rows of the strategies that were requested. Controls stay in the report of the run."""
    requested = {arm.label for arm in run.results.arms if arm.requested}
    costs = {cost.strategy: cost for cost in run.results.costs}
    return [
        LeaderboardRow(
            row.strategy,
            run.results.model,
            run.decoding,
            run,
            cells=[
                *(_build_cell(row.metrics[each.name], row.against_plain.get(each.name), each) for each in columns),
                *_build_cost_cells(costs.get(row.strategy)),
            ],
        )
        for row in run.scope.rows
        if row.strategy in requested
    ]


def _build_constant_rows(run: LeaderboardRun, columns: Sequence[MetricColumn]) -> list[LeaderboardRow]:
    return [
        LeaderboardRow(
            row.strategy,
            "",
            "",
            None,
            cells=[*(_build_cell(row.metrics[each.name], None, each) for each in columns), *_build_cost_cells(None)],
        )
        for row in run.scope.constant_rows
    ]


def _build_cell(estimate: Estimate, difference: Difference | None, column: MetricColumn) -> LeaderboardCell:
    text, interval = formatting.format_number(estimate.value, column), formatting.format_interval(estimate, column)
    if difference is None or difference.value is None:
        return LeaderboardCell(estimate.value, text, interval)
    change = formatting.format_number(difference.value, column, sign=True)
    change = ", ".join(filter(None, (change, formatting.format_p_value(difference))))
    return LeaderboardCell(estimate.value, text, interval, change, difference.verdict)


def _build_cost_cells(cost: StrategyCost | None) -> list[LeaderboardCell]:
    passes = cost.passes_per_token.value if cost and cost.passes_per_token else None
    slowdown = cost.slowdown if cost else None
    return [
        LeaderboardCell(value, formatting.NO_VALUE if value is None else f"{value:.2f}") for value in (passes, slowdown)
    ]
