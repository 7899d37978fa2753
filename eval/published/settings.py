"""The settings of published tables. They are data in tables.toml, and a user can write further files."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from eval.core.answer_store import describe_error
from eval.errors import EvaluationError, InputError

SHIPPED = Path(__file__).with_name("tables.toml")
BASELINE = "plain"
"""The strategy that stands for the baseline of a record, whose row has another name in every paper."""


class PublishedColumns(BaseModel):
    """The records that a scope of the task is compared with.

    Attributes:
        scope: Name of the scope in the results of the task.
        benchmarks: Names of the benchmark in the records.
        splits: Names of the split in the records. Empty for all.
        metrics: Name of a published metric to the name of the metric of the task.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: str
    benchmarks: tuple[str, ...] = Field(min_length=1)
    splits: tuple[str, ...] = ()
    metrics: dict[str, str] = Field(min_length=1)


class TableSettings(BaseModel):
    """The setting of a published table.

    Attributes:
        title: Title of the table.
        paper: Name of the paper in the records.
        task: Name of the task.
        model: Name of the model in the records.
        strategies: Name of a row of the table to the strategy, with its parameters.
        limit: Number of questions of every scope. None for all.
        note: Known differences between the setting of the paper and this one.
        columns: The published numbers.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    paper: str
    task: str
    model: str
    strategies: dict[str, str] = Field(min_length=1)
    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int
    seeds: str = "0"
    limit: int | None = None
    suffix: str | None = None
    prompt: str | None = None
    variant: str = "original"
    parser: str = "official"
    note: str = ""
    columns: tuple[PublishedColumns, ...] = Field(min_length=1)


def load_settings(table: str) -> TableSettings:
    """Load the settings of a table.

    Args:
        table: Name of a table of tables.toml, or the path of a TOML file with the settings of one table.

    Returns:
        The settings.

    Raises:
        EvaluationError: There is no table with the name.
    """
    if table.endswith(".toml"):
        file = Path(table).expanduser()
        return _parse_settings(_read_toml(file), file)
    tables = _read_toml(SHIPPED)
    if table not in tables:
        raise EvaluationError(f"There is no table '{table}'. Choose one of {', '.join(tables)}, or name a .toml file.")
    return _parse_settings(tables[table], SHIPPED)


def list_tables() -> dict[str, str]:
    """Return the names of the tables of tables.toml with their titles."""
    return {name: _parse_settings(values, SHIPPED).title for name, values in _read_toml(SHIPPED).items()}


def _read_toml(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(error.strerror or str(error), file) from error
    except ValueError as error:
        raise InputError(f"is not TOML: {error}", file) from error


def _parse_settings(values: object, file: Path) -> TableSettings:
    try:
        return TableSettings.model_validate(values)
    except ValidationError as error:
        raise InputError(f"is not the setting of a table: {describe_error(error)}", file) from None
