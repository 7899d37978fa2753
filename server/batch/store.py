"""The store of files and batches: documents in SQLite, contents in files. Each belongs to the API key that sent it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import aiosqlite
import anyio
import structlog
from anyio.to_thread import run_sync
from fastapi import Depends, Request
from openai.types import Batch, FileObject
from pydantic import BaseModel

from decoding.errors import BadRequest, Overloaded
from server.batch.data_folder import FILE_PREFIX, LOST_NAME, DataFolder, DataFolderError, convert_store_errors
from server.batch.pagination import MAX_PAGE_BYTES
from server.batch.uploads import Upload
from server.errors import NotFound, StorageFull, StoreFailed

SCHEMA = """
CREATE TABLE IF NOT EXISTS files
    (id TEXT PRIMARY KEY, owner TEXT NOT NULL, bytes INTEGER NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches
    (id TEXT PRIMARY KEY, owner TEXT NOT NULL, status TEXT NOT NULL, document TEXT NOT NULL);
"""
# The journal keeps its space between transactions, so that small changes can be stored on a full disk.
JOURNAL = "PRAGMA journal_mode = PERSIST; PRAGMA journal_size_limit = 65536;"
INDEXES = """
CREATE INDEX IF NOT EXISTS files_of_owner ON files (owner);
CREATE INDEX IF NOT EXISTS batches_of_owner ON batches (owner, status);
"""
# The documents of one page and the next one. A page ends at `MAX_PAGE_BYTES`, so no later document is read.
PAGE_QUERY = """
SELECT document FROM (
    SELECT document, ROW_NUMBER() OVER page AS number, SUM(size) OVER page - size AS size_before FROM (
        SELECT document, rowid AS position, LENGTH(CAST(document AS BLOB)) AS size FROM {table}
        WHERE owner = ?1 AND {condition}
        AND (?2 IS NULL OR rowid {after} (SELECT rowid FROM {table} WHERE id = ?2 AND owner = ?1))
        ORDER BY rowid {order} LIMIT ?3
    ) WINDOW page AS (ORDER BY position {order} ROWS UNBOUNDED PRECEDING)
) WHERE number <= 2 OR size_before <= {max_bytes} ORDER BY number
"""
HAS_PURPOSE = "(?4 IS NULL OR json_extract(document, '$.purpose') = ?4)"
UNFINISHED_STATUSES = ("validating", "in_progress", "cancelling")
READING_STATUSES = ("validating", "in_progress")  # statuses in which a batch reads its input file
LOCK_TIMEOUT = 1.0  # seconds; all statements wait in one thread behind one that waits for a foreign lock
MAX_FILES = 10_000  # of one owner; the results of its batches may add to them
MAX_BATCHES = 1000  # of one owner; a new batch replaces the oldest that has ended

log = structlog.get_logger("onlyseen.server")


class BatchStore:
    """Files and batches in one folder. One server uses a folder at a time."""

    def __init__(self, data_dir: Path | None, max_bytes: int, max_owner_bytes: int | None = None) -> None:
        """Create a store, which `open` makes usable.

        Args:
            data_dir: Folder of the store, or None for a temporary folder that is removed when the store closes.
            max_bytes: Bound on the bytes of all files together.
            max_owner_bytes: Bound on the bytes of one owner's files, or None for no such bound.
        """
        self.folder = DataFolder(data_dir, max_bytes, max_owner_bytes)
        self._connection: aiosqlite.Connection | None = None

    async def open(self) -> None:
        """Open the folder, and create the tables if they are missing.

        Raises:
            DataFolderError: Another server uses the folder, or the database cannot be opened.
        """
        await run_sync(self.folder.open)
        # Every statement is a transaction: one that a cancelled request leaves open would lock out everyone else.
        self._connection = await aiosqlite.connect(
            self.folder.path / "batches.sqlite3", timeout=LOCK_TIMEOUT, isolation_level=None
        )
        try:
            await self._connection.executescript(JOURNAL + SCHEMA)
            with suppress(sqlite3.Error):  # a full disk may have no room for the indexes of an older database
                await self._connection.executescript(INDEXES)
            await self._count_files()
        except DataFolderError:
            await self.close()
            raise
        except sqlite3.Error as error:
            await self.close()
            raise DataFolderError(f"data_dir: the database in {self.folder.path} cannot be opened: {error}.") from error

    async def _count_files(self) -> None:
        try:
            owners = await self._list_owners()
            is_empty = await self._is_empty()
        except sqlite3.Error as error:  # a database that fails now may work later
            log.error("file_owners_unreadable", exc_info=error)
            owners, is_empty = None, False
        if is_empty and (moved := await run_sync(self.folder.move_files)):
            folder = str(self.folder.path / LOST_NAME)
            log.error("files_without_database_moved", folder=folder, files=moved[:100], number=len(moved))
        if removed := await run_sync(self.folder.count_files, owners):
            log.warning("files_without_owner_removed", files=removed[:100], number=len(removed))

    async def _is_empty(self) -> bool:
        """Return whether the database has no file and no batch, because it is new or its content is lost."""
        query = "SELECT id FROM files UNION ALL SELECT id FROM batches LIMIT 1"
        return not list(await self.connection.execute_fetchall(query))

    async def _list_owners(self) -> dict[str, str]:
        """Return the owners of the files that are registered, or that are results of unfinished batches."""
        rows = await self.connection.execute_fetchall("SELECT id, owner FROM files")
        owners: dict[str, str] = {str(file_id): str(owner) for file_id, owner in rows}
        query = "SELECT id, owner FROM batches WHERE status IN (?, ?, ?)"
        for batch_id, owner in await self.connection.execute_fetchall(query, UNFINISHED_STATUSES):
            owners |= dict.fromkeys(get_result_file_ids(batch_id), owner)
        return owners

    async def close(self) -> None:
        """Close the database and the folder. A second call does nothing."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None
        self.folder.close()

    @property
    def connection(self) -> aiosqlite.Connection:
        """The connection to the database.

        Raises:
            RuntimeError: The store is not open.
        """
        if self._connection is None:
            raise RuntimeError("the store is not open")
        return self._connection

    def get_path(self, file_id: str) -> Path:
        """Return the path of a file's content."""
        return self.folder.get_path(file_id)

    async def add_upload(self, owner: str, upload: Upload, filename: str) -> FileObject:
        """Add an uploaded file under a new id.

        Args:
            owner: Owner of the file.
            upload: The complete upload.
            filename: The name that the client has sent.

        Returns:
            The file's document.

        Raises:
            StorageFull: The owner has `MAX_FILES` files, or the upload has been dropped.
            StoreFailed: The file cannot be stored.
        """  # noqa: DOC502 - `publish` raises it
        file_id = f"{FILE_PREFIX}{uuid4().hex}"
        try:
            await run_sync(upload.publish, file_id)
            file = await self._describe_file(file_id, filename, "batch")
            query = "INSERT INTO files SELECT ?, ?, ?, ? WHERE (SELECT COUNT(*) FROM files WHERE owner = ?) < ?"
            values = (file_id, owner, file.bytes, to_document(file), owner, MAX_FILES)
            if not await self._execute(query, values):
                message = f"There are {MAX_FILES} files: delete files first."
                raise StorageFull(message, param="file", code="too_many_files")
        except BaseException:
            with suppress(StoreFailed), anyio.CancelScope(shield=True):
                await run_sync(self.folder.remove, owner, file_id)
            raise
        return file

    async def register_result(self, owner: str, file_id: str, filename: str) -> FileObject:
        """Add a file of results whose content is already at its path, or store its new size.

        Returns:
            The file's document.
        """
        file = await self._describe_file(file_id, filename, "batch_output")
        query = (
            "INSERT INTO files VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
            "SET bytes = excluded.bytes, document = json_set(document, '$.bytes', excluded.bytes)"
        )
        await self._execute(query, (file_id, owner, file.bytes, to_document(file)))
        return file

    async def _describe_file(self, file_id: str, filename: str, purpose: str) -> FileObject:
        size = await run_sync(get_size, self.get_path(file_id))
        return FileObject.model_validate(
            {
                "id": file_id,
                "object": "file",
                "bytes": size,
                "created_at": int(time.time()),
                "filename": filename,
                "purpose": purpose,
                "status": "processed",
            }
        )

    async def get_file(self, owner: str, file_id: str) -> FileObject:
        """Return a file's document.

        Raises:
            NotFound: The owner has no such file.
        """
        documents = await self._select("SELECT document FROM files WHERE id = ? AND owner = ?", (file_id, owner))
        if not documents:
            raise NotFound("There is no such file.", param="file_id")
        return FileObject.model_validate_json(documents[0])

    async def list_files(
        self,
        owner: str,
        limit: int,
        after: str | None = None,
        purpose: str | None = None,
        *,
        is_ascending: bool = False,
    ) -> list[str]:
        """Return documents of an owner's files, at most one beyond `MAX_PAGE_BYTES`.

        Args:
            owner: The owner.
            limit: Largest number of files.
            after: Id of the file before the first one. An unknown id gives no files.
            purpose: The purpose of the files, or None for all.
            is_ascending: Whether the oldest file comes first.

        Returns:
            JSON of `FileObject`.
        """
        query = build_page_query("files", HAS_PURPOSE, is_ascending=is_ascending)
        return await self._select(query, (owner, after, limit, purpose))

    async def delete_file(self, owner: str, file_id: str) -> None:
        """Delete a file with its content. The content goes first, because the database cannot change on a full disk.

        Raises:
            BadRequest: A batch reads the file, or writes it.
        """
        await self.get_file(owner, file_id)  # first, so that the use of another owner's file is not revealed
        query = (
            "SELECT id FROM batches WHERE owner = ? AND (status IN (?, ?) AND "
            "json_extract(document, '$.input_file_id') = ? OR status IN (?, ?, ?) AND id = ?) LIMIT 1"
        )
        writer = get_batch_id(file_id)
        if await self._select(query, (owner, *READING_STATUSES, file_id, *UNFINISHED_STATUSES, writer)):
            raise BadRequest("An unfinished batch uses this file.", param="file_id", code="file_in_use")
        await run_sync(self.folder.remove, owner, file_id)
        await self._execute("DELETE FROM files WHERE id = ?", (file_id,))

    async def is_growing(self, owner: str, file_id: str) -> bool:
        """Return whether an unfinished batch writes a file."""
        query = "SELECT id FROM batches WHERE id = ? AND owner = ? AND status IN (?, ?, ?)"
        return bool(await self._select(query, (get_batch_id(file_id), owner, *UNFINISHED_STATUSES)))

    async def add_batch(self, owner: str, batch: Batch) -> None:
        """Add a batch. Beyond `MAX_BATCHES`, the owner's oldest ended batch is forgotten. Its files stay.

        Raises:
            Overloaded: That many batches are unfinished.
            StorageFull: The owner has `MAX_FILES` files.
        """
        if await self._select("SELECT 1 FROM files WHERE owner = ? LIMIT 1 OFFSET ?", (owner, MAX_FILES - 1)):
            message = f"There are {MAX_FILES} files: delete files first."
            raise StorageFull(message, param="input_file_id", code="too_many_files")
        query = (
            "INSERT INTO batches SELECT ?1, ?2, ?3, ?4 WHERE "
            "(SELECT COUNT(*) FROM batches WHERE owner = ?2 AND status IN (?5, ?6, ?7)) < ?8"
        )
        values = (batch.id, owner, batch.status, to_document(batch), *UNFINISHED_STATUSES, MAX_BATCHES)
        if not await self._execute(query, values):
            raise Overloaded(f"There are {MAX_BATCHES} unfinished batches.", code="too_many_batches")
        statement = (
            "DELETE FROM batches WHERE id IN (SELECT id FROM batches WHERE owner = ?1 AND status NOT IN (?2, ?3, ?4) "
            "ORDER BY rowid LIMIT MAX(0, (SELECT COUNT(*) FROM batches WHERE owner = ?1) - ?5))"
        )
        await self._execute(statement, (owner, *UNFINISHED_STATUSES, MAX_BATCHES))

    async def update_batch(self, owner: str, batch_id: str, *statuses: str, **fields: Any) -> Batch | None:
        """Change some fields of a batch in one statement, so that concurrent updates of other fields are kept.

        Args:
            owner: The batch's owner.
            batch_id: The batch's id.
            *statuses: Statuses that the batch may have. In another status it stays as it is.
            **fields: New values.

        Returns:
            The changed batch, or None if it has none of the statuses.
        """
        query = (
            "UPDATE batches SET document = json_patch(document, ?), status = COALESCE(?, status) "
            "WHERE id = ? AND owner = ? AND status IN (SELECT value FROM json_each(?)) RETURNING document"
        )
        values = (json.dumps(fields), fields.get("status"), batch_id, owner, json.dumps(statuses))
        with convert_store_errors():
            rows = await self.connection.execute_fetchall(query, values)
        for (document,) in rows:
            return Batch.model_validate_json(document)
        return None

    async def get_batch(self, owner: str, batch_id: str) -> Batch:
        """Return a batch.

        Raises:
            NotFound: The owner has no such batch.
        """
        documents = await self._select("SELECT document FROM batches WHERE id = ? AND owner = ?", (batch_id, owner))
        if not documents:
            raise NotFound("There is no such batch.", param="batch_id")
        return Batch.model_validate_json(documents[0])

    async def list_batches(self, owner: str, limit: int, after: str | None = None) -> list[str]:
        """Return documents of an owner's batches, newest first, and at most one beyond `MAX_PAGE_BYTES`.

        Args:
            owner: The owner.
            limit: Largest number of batches.
            after: Id of the batch before the first one. An unknown id gives no batches.

        Returns:
            JSON of `Batch`.
        """
        return await self._select(build_page_query("batches", "TRUE", is_ascending=False), (owner, after, limit))

    async def list_unfinished_owners(self) -> list[str]:
        """Return the owners of unfinished batches, those with the oldest batch first."""
        query = "SELECT owner FROM batches WHERE status IN (?, ?, ?) GROUP BY owner ORDER BY MIN(rowid)"
        return await self._select(query, UNFINISHED_STATUSES)

    async def list_unfinished(self, owner: str) -> list[str]:
        """Return the ids of an owner's unfinished batches, oldest first."""
        query = "SELECT id FROM batches WHERE owner = ? AND status IN (?, ?, ?) ORDER BY rowid"
        return await self._select(query, (owner, *UNFINISHED_STATUSES))

    async def _select(self, query: str, values: Iterable[str | int | None]) -> list[str]:
        with convert_store_errors():
            return [value for (value,) in await self.connection.execute_fetchall(query, tuple(values))]

    async def _execute(self, query: str, values: Iterable[str | int]) -> int:
        """Execute a statement and return the number of changed rows."""
        with convert_store_errors():
            return (await self.connection.execute(query, tuple(values))).rowcount


def build_page_query(table: str, condition: str, *, is_ascending: bool) -> str:
    """Build the query for the documents of a page and the next one."""
    after, order = (">", "ASC") if is_ascending else ("<", "DESC")
    return PAGE_QUERY.format(table=table, condition=condition, after=after, order=order, max_bytes=MAX_PAGE_BYTES)


def get_result_file_ids(batch_id: str) -> tuple[str, str]:
    """Return the ids of the output file and of the error file.

    Both derive from the batch's id, so that results are found again after a crash.
    """
    name = batch_id.removeprefix("batch_")
    return f"{FILE_PREFIX}{name}-output", f"{FILE_PREFIX}{name}-error"


def get_batch_id(file_id: str) -> str:
    """Return the id of the batch that a file of results belongs to. For other files there is no such batch."""
    return "batch_" + file_id.removeprefix(FILE_PREFIX).rpartition("-")[0]


def get_size(path: Path) -> int:
    """Return the size of a file in bytes."""
    with convert_store_errors():
        return path.stat().st_size


def to_document(model: BaseModel) -> str:
    return model.model_dump_json(exclude_unset=True)


async def get_store(request: Request) -> BatchStore:
    """Return the store of the application that handles a request."""
    store: BatchStore = request.app.state.batch_store
    return store


StoreDep = Annotated[BatchStore, Depends(get_store)]
