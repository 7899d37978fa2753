"""The numbers of a run beside all published numbers of the same model, benchmark and method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from eval.core.results import Difference, Estimate, MetricColumn, Results, ScopeResult
from eval.published.records import PublishedRecord
from eval.published.settings import BASELINE, PublishedColumns, TableSettings
from eval.report.formatting import NO_VALUE, format_interval, format_number
from eval.report.markdown import render_table

MAX_LISTED = 6  # published numbers in a cell


class PublishedNumber(BaseModel):
    """A published number.

    Attributes:
        value: The number, in the unit of the table.
        is_own: Whether the record is of the paper whose table is reproduced.
        record: Index of the record in the list of sources.
    """

    value: float
    is_own: bool
    record: int


class ReproducedNumber(BaseModel):
    """A number of a run, and the published ones.

    Attributes:
        row: Name of the row of the table. A difference has the form `vcd - plain`.
        value: The number of the run with its interval.
        published: All published numbers, those of the paper itself first.
    """

    scope: str
    metric: str
    row: str
    value: Estimate
    published: list[PublishedNumber]


class Reproduction(BaseModel):
    """A run beside a published table.

    Attributes:
        title: Title of the table.
        table_model: Model of the table.
        model: Model of the run.
        questions: Number of questions of each scope of the run.
        limit: Number of questions of every scope in the setting of the table, None for all.
        note: Known differences between the settings.
        numbers: The numbers.
        sources: The records with published numbers.
    """

    title: str
    table_model: str
    model: str
    questions: dict[str, int]
    limit: int | None
    note: str
    numbers: list[ReproducedNumber]
    sources: list[PublishedRecord]


def build_reproduction(
    settings: TableSettings, results: Results, records: Sequence[PublishedRecord], labels: dict[str, str]
) -> Reproduction:
    """Join the results of a run with published numbers.

    Args:
        settings: The settings of the table.
        results: The results of the run.
        records: All published records.
        labels: Name of a row of the table to the label of its strategy in the run.

    Returns:
        The numbers side by side.
    """
    sources = [each for each in records if each.model == settings.model and _is_used(each, settings)]
    sources.sort(key=lambda each: each.paper != settings.paper)
    columns = {column.name: column for column in results.columns}
    scopes = {scope.scope: scope for scope in results.scopes}
    numbers = [
        number
        for part in settings.columns
        if part.scope in scopes
        for published, name in part.metrics.items()
        if name in columns
        for number in _list_numbers(settings, scopes[part.scope], part, (published, columns[name]), sources, labels)
    ]
    used = sorted({each.record for number in numbers for each in number.published})
    for number in numbers:
        number.published = [each.model_copy(update={"record": used.index(each.record)}) for each in number.published]
    return Reproduction(
        title=settings.title,
        table_model=settings.model,
        model=results.model,
        questions={part.scope: scopes[part.scope].questions for part in settings.columns if part.scope in scopes},
        limit=settings.limit,
        note=settings.note,
        numbers=numbers,
        sources=[sources[index] for index in used],
    )


def _is_used(record: PublishedRecord, settings: TableSettings) -> bool:
    return any(_fits(record, part) for part in settings.columns)


def _fits(record: PublishedRecord, part: PublishedColumns) -> bool:
    return record.benchmark in part.benchmarks and (not part.splits or record.split in part.splits)


def _list_numbers(
    settings: TableSettings,
    scope: ScopeResult,
    part: PublishedColumns,
    metric: tuple[str, MetricColumn],
    sources: Sequence[PublishedRecord],
    labels: dict[str, str],
) -> Iterator[ReproducedNumber]:
    """Yield the number of every strategy, its difference to the baseline of the same source, and constant answers."""
    published, column = metric
    results = {row.strategy: row for row in scope.rows}
    for name in (BASELINE, *settings.strategies):
        row = results.get(labels.get(name, name))
        if row is None:
            continue
        values: list[PublishedNumber] = []
        changes: list[PublishedNumber] = []
        for index, record in enumerate(sources):
            value = record.get_number(record.baseline if name == BASELINE else name, published)
            if value is None or not _fits(record, part):
                continue
            is_own = record.paper == settings.paper
            values.append(PublishedNumber(value=value, is_own=is_own, record=index))
            baseline = record.get_number(record.baseline, published)
            if baseline is not None:
                changes.append(PublishedNumber(value=round(value - baseline, 6), is_own=is_own, record=index))
        number = ReproducedNumber(
            scope=scope.scope,
            metric=column.title,
            row=name,
            value=_convert(row.metrics[column.name], column),
            published=values,
        )
        yield number
        if (difference := row.against_plain.get(column.name)) is not None:
            change = {"row": f"{name} - {BASELINE}", "value": _convert(difference, column), "published": changes}
            yield number.model_copy(update=change)
    for row in scope.constant_rows:
        yield ReproducedNumber(
            scope=scope.scope,
            metric=column.title,
            row=row.strategy,
            value=_convert(row.metrics[column.name], column),
            published=[],
        )


def _convert(estimate: Estimate | Difference, column: MetricColumn) -> Estimate:
    """Convert to the unit of tables, which have percent where reports have."""
    factor = 100 if column.percent else 1
    value, low, high = (
        None if each is None else each * factor for each in (estimate.value, estimate.low, estimate.high)
    )
    return Estimate(value=value, low=low, high=high)


def describe_deviations(reproduction: Reproduction) -> list[str]:
    """List the ways in which the run may differ from the table."""
    lines = [
        f"The table is about {reproduction.table_model}, and the server has {reproduction.model}. "
        "Numbers can be compared only if these are the same weights."
    ]
    lines += [
        f"{scope}: {count} questions instead of {reproduction.limit}."
        for scope, count in reproduction.questions.items()
        if reproduction.limit is not None and count != reproduction.limit
    ]
    return [*lines, *([reproduction.note] if reproduction.note else [])]


HEADERS = ("scope", "metric", "row", "this run", "the paper", "others")


def list_rows(reproduction: Reproduction) -> list[list[str]]:
    """List the cells of the table, in the order of `HEADERS`. Brackets have the number of the source."""
    column = MetricColumn(name="", title="", better="neither", percent=False, primary=False)
    rows = []
    for number in reproduction.numbers:
        sign = " - " in number.row
        own, others = (
            [
                f"{format_number(each.value, column, sign=sign)} ({each.record + 1})"
                for each in number.published
                if each.is_own == is_own
            ]
            for is_own in (True, False)
        )
        value = f"{format_number(number.value.value, column, sign=sign)} "
        value += format_interval(number.value, column, sign=sign)
        rest = [f"and {len(others) - MAX_LISTED} more"] if len(others) > MAX_LISTED else []
        cells = [", ".join(own) or NO_VALUE, ", ".join([*others[:MAX_LISTED], *rest]) or NO_VALUE]
        rows.append([number.scope, number.metric, number.row, value.strip(), *cells])
    return rows


def list_sources(reproduction: Reproduction) -> list[str]:
    """Describe the records with published numbers, in the order of their numbers."""
    return [
        f"{index}. {each.paper} (arXiv:{each.arxiv}), {each.table}, {each.benchmark} {each.split}; {each.decoding}; "
        f"read in: {each.source}{'' if each.verified else ' (not verified)'}{f'; {each.note}' if each.note else ''}"
        for index, each in enumerate(reproduction.sources, 1)
    ]


def render_reproduction(reproduction: Reproduction) -> str:
    """Render reproduction.md."""
    lines = [f"# {reproduction.title}", "", *(f"- {line}" for line in describe_deviations(reproduction)), ""]
    lines += ["Rows with a minus are differences to the baseline of the same run or paper.", ""]
    lines += [*render_table(list(HEADERS), list_rows(reproduction)), "", "## Sources", ""]
    return "\n".join([*lines, *list_sources(reproduction)]) + "\n"
