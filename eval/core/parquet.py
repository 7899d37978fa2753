"""Rows of parquet files. Only a slice of a file is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from eval.errors import InputError

PARQUET_SLICE = 64  # rows in memory


def import_parquet() -> Any:
    """Import the parquet library.

    Returns:
        The module.

    Raises:
        InputError: It is not installed.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputError("needs pyarrow: pip install '.[batch]' in the folder of OnlySeen", "parquet") from None
    return pyarrow.parquet


def count_parquet(file: Path) -> int:
    """Count the rows of a file.

    Args:
        file: The file.

    Returns:
        The number of rows.

    Raises:
        InputError: The file cannot be read, or the parquet library is not installed.
    """
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(file) as opened:
            return int(opened.metadata.num_rows)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"cannot be read: {error}", file) from None


def iterate_parquet(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Iterate over the rows of a file.

    Args:
        file: The file.

    Yields:
        The number of each row, counted from 0, and its values by column.

    Raises:
        InputError: The file cannot be read, or the parquet library is not installed.
    """
    number = 0
    parquet = import_parquet()
    try:
        with parquet.ParquetFile(file) as opened:
            for batch in opened.iter_batches(PARQUET_SLICE):
                for record in batch.to_pylist():
                    yield number, record
                    number += 1
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors
        raise InputError(f"cannot be read: {error}", file) from None
