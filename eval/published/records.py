"""Published numbers, from a YAML file of records. The file is the user's: this repository has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from eval.core.answer_store import describe_error
from eval.errors import InputError


class PublishedRecord(BaseModel):
    """A part of a published table.

    Attributes:
        paper: Name of the paper.
        arxiv: Its number, or another reference.
        table: Name of the table.
        source: Where the numbers were read.
        verified: Whether they were read in the paper or in its repository, and not in notes about it.
        model: Name of the model.
        decoding: Description of the decoding.
        benchmark: Name of the benchmark.
        split: Name of the split.
        setting: Further settings.
        note: Remarks.
        baseline: Name of the row that the paper compares with.
        rows: Name of a row to its numbers, in percent unless the benchmark has another unit.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    paper: str
    arxiv: str | None = None
    table: str = ""
    source: str
    verified: bool
    model: str
    decoding: str = ""
    benchmark: str
    split: str = ""
    setting: JsonValue = None
    note: str = ""
    baseline: str | None = None
    rows: dict[str, dict[str, JsonValue]]

    def get_number(self, row: str | None, metric: str) -> float | None:
        """Return a number of a row, or None without one."""
        value = self.rows.get(row, {}).get(metric) if row is not None else None
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def read_records(file: Path) -> list[PublishedRecord]:
    """Read a YAML file with a list `records`.

    Args:
        file: The file.

    Returns:
        The records.

    Raises:
        InputError: The file cannot be read or is no YAML, or a record lacks a field. The error names the record.
    """
    document = _read_yaml(file)
    records = document.get("records") if isinstance(document, dict) else None
    if not isinstance(records, list):
        raise InputError("must be a list of records", file, None, "records")
    parsed = []
    for index, record in enumerate(records):
        try:
            parsed.append(PublishedRecord.model_validate(record))
        except ValidationError as error:
            raise InputError(describe_error(error), file, None, f"records[{index}]") from None
    return parsed


def _read_yaml(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_bytes())
    except OSError as error:
        raise InputError(error.strerror or str(error), file) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
        raise InputError(f"is not YAML: {problem}", file, mark and mark.line + 1) from error
