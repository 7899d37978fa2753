"""The output folder of a job, in which every row stands exactly once.

An SQLite file has the keys of all rows, and the rows that are in no part yet. A row is stored when its transaction is.
A part is written from the oldest of these rows, and only then are they removed. If the process is killed in between,
the next one writes the same part again. So a row is neither lost nor doubled, and memory does not grow with the job.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ValidationError

from eval.bulk.items import JobSettings
from eval.bulk.rows import READ_ROWS, BulkRow, RowFormat, write_part
from eval.core.answer_store import describe_error
from eval.errors import InputError, RunError

JOB_NAME, STATE_NAME, ROWS_NAME = "job.json", "state.sqlite", "rows"
SCHEMA = """
CREATE TABLE IF NOT EXISTS done (key BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS pending (number INTEGER PRIMARY KEY, row TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


class StoredJob(BaseModel, extra="forbid"):
    """The content of job.json.

    Attributes:
        settings: The settings on which the answers depend.
        row_format: Format of the parts.
        image_column: Column of the picture, if the input has records.
    """

    settings: JobSettings
    row_format: RowFormat = "parquet"
    image_column: str = "image"


class RowTotals(BaseModel):
    """Sums over all rows of a job.

    Attributes:
        rows: Rows.
        failures: Rows with an error.
        tokens: Generated tokens of the answers.
        claims: Claims.
        struck: Claims that were struck out.
        parts: Files of rows.
    """

    rows: int = 0
    failures: int = 0
    tokens: int = 0
    claims: int = 0
    struck: int = 0
    parts: int = 0


class RowStore:
    """The rows of a job. One process writes them.

    Attributes:
        folder: The output folder.
        totals: Sums over all rows.
    """

    def __init__(self, folder: Path, job: StoredJob, part_rows: int = 10_000) -> None:
        """Create a store.

        Args:
            folder: The output folder.
            job: The settings, which job.json stores.
            part_rows: Rows of a part.
        """
        self.folder = folder
        self.totals = RowTotals()
        self._job = job
        self._part_rows = part_rows
        self._pending = 0
        self._mutex = threading.Lock()  # of the connection: a thread adds rows while the event loop looks keys up
        self._writing = threading.Lock()  # an error or Ctrl+C ends the job while a thread still adds rows
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> Self:
        try:
            with self._convert_errors():
                (self.folder / ROWS_NAME).mkdir(parents=True, exist_ok=True)
                self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
                self._acquire_lock(self._lock)
                self._compare_job()
                for file in (self.folder / ROWS_NAME).glob(".*.incomplete"):
                    file.unlink()
                self._connection = sqlite3.connect(self.folder / STATE_NAME, check_same_thread=False)
                self._connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; {SCHEMA}")
                self._load_counts()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._writing:
            self._close()

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RunError(f"{self.folder} is not open for writing.")
        return self._connection

    def find_missing(self, keys: Sequence[str]) -> set[str]:
        """Return the keys that have no row yet."""
        query = "SELECT 1 FROM done WHERE key = ?"
        with self._convert_errors(), self._mutex:
            return {key for key in keys if not self._open.execute(query, [bytes.fromhex(key)]).fetchone()}

    def iterate_keys(self) -> Iterator[bytes]:
        """Iterate over the keys of all rows, in order."""
        for (key,) in self._open.execute("SELECT key FROM done ORDER BY key"):
            yield key

    def add(self, rows: Sequence[BulkRow]) -> list[BulkRow]:
        """Store rows and return when they are on disk.

        Args:
            rows: The rows.

        Returns:
            The rows that are new. A key that has a row keeps it.
        """
        with self._convert_errors(), self._writing:
            new = self._insert(rows)
            while self._pending >= self._part_rows:
                self._write_part()
        return new

    def finish(self) -> None:
        """Write the last part."""
        with self._convert_errors(), self._writing:
            self._load_counts()  # Ctrl+C may have come between a transaction and the counts in memory
            while self._pending:
                self._write_part()

    def _insert(self, rows: Sequence[BulkRow]) -> list[BulkRow]:
        new = []
        with self._mutex, self._open as transaction:
            for row in rows:
                inserted = transaction.execute("INSERT OR IGNORE INTO done VALUES (?)", [bytes.fromhex(row.key)])
                if inserted.rowcount:
                    transaction.execute("INSERT INTO pending (row) VALUES (?)", [row.model_dump_json()])
                    new.append(row)
            totals = add_rows(self.totals, new)
            self._save_totals(totals)
        self.totals = totals
        self._pending += len(new)
        return new

    def _write_part(self) -> None:
        """Move the oldest rows from the state to a part. A repetition after a crash writes the same part again."""
        last = self._open.execute("SELECT number FROM pending ORDER BY number LIMIT 1 OFFSET ?", [self._part_rows - 1])
        (end,) = last.fetchone() or self._open.execute("SELECT max(number) FROM pending").fetchone()
        name = f"part-{self.totals.parts:06d}.{self._job.row_format}"
        count = write_part(self._read_pending(end), self.folder / ROWS_NAME / name, self._job.row_format)
        totals = self.totals.model_copy(update={"parts": self.totals.parts + 1})
        with self._open as transaction:
            transaction.execute("DELETE FROM pending WHERE number <= ?", [end])
            self._save_totals(totals)
        self.totals = totals
        self._pending -= count

    def _read_pending(self, end: int) -> Iterator[list[BulkRow]]:
        """Read the rows that are in no part, up to a number, a bounded number of rows at a time."""
        query = "SELECT number, row FROM pending WHERE number > ? AND number <= ? ORDER BY number LIMIT ?"
        number = 0
        while numbered := self._open.execute(query, [number, end, READ_ROWS]).fetchall():
            number = numbered[-1][0]
            yield [BulkRow.model_validate_json(row) for _, row in numbered]

    def _load_counts(self) -> None:
        self.totals = RowTotals(**dict(self._open.execute("SELECT name, value FROM totals")))
        (self._pending,) = self._open.execute("SELECT count(*) FROM pending").fetchone()

    def _save_totals(self, totals: RowTotals) -> None:
        self._open.executemany("INSERT OR REPLACE INTO totals VALUES (?, ?)", totals.model_dump().items())

    def _compare_job(self) -> None:
        """Write job.json, or compare it with that of the first run."""
        file = self.folder / JOB_NAME
        if not file.exists():
            temporary = file.with_suffix(".incomplete")
            temporary.write_text(self._job.model_dump_json(indent=2) + "\n")
            temporary.replace(file)
            return
        stored = load_job(self.folder)
        field = stored.settings.find_difference(self._job.settings)
        for name in ("row_format", "image_column"):
            if field is None and getattr(stored, name) != getattr(self._job, name):
                field = name
        if field is not None:
            raise RunError(f'{self.folder} has a job with another "{field}" ({JOB_NAME}). Choose another --out.')

    def _acquire_lock(self, descriptor: int) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{self.folder}: another job is writing here. Choose another --out.") from None

    @contextmanager
    def _convert_errors(self) -> Iterator[None]:
        """Convert errors of the storage, such as a full disk."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise RunError(
                f"{self.folder} cannot be written: {reason}. Stored rows are not lost. The same command continues."
            ) from error

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def add_rows(totals: RowTotals, rows: Sequence[BulkRow]) -> RowTotals:
    """Add rows to totals."""
    return totals.model_copy(
        update={
            "rows": totals.rows + len(rows),
            "failures": totals.failures + sum(row.error is not None for row in rows),
            "tokens": totals.tokens + sum(row.tokens or 0 for row in rows),
            "claims": totals.claims + sum(len(row.claims or ()) for row in rows),
            "struck": totals.struck + sum(row.struck for row in rows),
        }
    )


def load_job(folder: Path) -> StoredJob:
    """Load the settings of a job.

    Args:
        folder: The output folder.

    Returns:
        The content of job.json.

    Raises:
        InputError: The folder has no job, or job.json is damaged.
    """
    file = folder / JOB_NAME
    try:
        return StoredJob.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        raise InputError("no such file. Is this the output folder of a job?", file) from None
    except ValidationError as error:
        raise InputError(describe_error(error), file) from None


def list_parts(folder: Path) -> list[Path]:
    """List the files of rows, in their order."""
    return sorted((folder / ROWS_NAME).glob("part-*"))
