"""Files and batches: rows in SQLite, contents beside them. Each belongs to the API key that sent it."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
from anyio.to_thread import run_sync
from openai.types import Batch, FileObject
from pydantic import BaseModel

from decoding.errors import BadRequest
from server.errors import NotFound

TABLES = """
CREATE TABLE IF NOT EXISTS files
    (id TEXT PRIMARY KEY, owner TEXT NOT NULL, bytes INTEGER NOT NULL, document TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS batches
    (id TEXT PRIMARY KEY, owner TEXT NOT NULL, status TEXT NOT NULL, document TEXT NOT NULL);
"""
UNFINISHED = ("validating", "in_progress", "cancelling")


class Store:
    """In one folder, which one server uses at a time."""

    def __init__(self, folder: Path | None, most_bytes: int) -> None:
        """Without a folder, it takes one that is gone when the server stops."""
        self.most_bytes = most_bytes
        self._given = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._rows: aiosqlite.Connection | None = None

    async def open(self) -> None:
        if self._given is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="onlyseen-")
        self.folder.mkdir(parents=True, exist_ok=True)
        # Every statement is a transaction: one left open by a cancelled request would lock everybody out.
        self._rows = await aiosqlite.connect(self.folder / "batches.sqlite3", isolation_level=None)
        await self._rows.executescript(TABLES)

    async def close(self) -> None:
        if self._rows is not None:
            await self._rows.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @property
    def folder(self) -> Path:
        if self._given is None and self._temporary is None:
            raise RuntimeError("the store is not open")
        return self._given or Path(self._temporary.name if self._temporary else "")

    @property
    def rows(self) -> aiosqlite.Connection:
        if self._rows is None:
            raise RuntimeError("the store is not open")
        return self._rows

    def path(self, file_id: str) -> Path:
        """Ids are drawn here, or looked up here first: no client can name a path."""
        return self.folder / file_id

    async def room(self, wanted: int) -> None:
        """Raises: BadRequest: there is none for so many bytes."""
        async with self.rows.execute("SELECT COALESCE(SUM(bytes), 0) FROM files") as found:
            (held,) = await found.fetchone() or (0,)
        if held + wanted > self.most_bytes:
            raise BadRequest("The server's storage is full: delete files first.", param="file", code="storage_full")

    async def keep(self, owner: str, identity: str, filename: str, purpose: str) -> FileObject:
        """A file whose content lies at its path already; once more changes nothing."""
        size = await run_sync(size_of, self.path(identity))
        file = FileObject.model_validate(
            {
                "id": identity,
                "object": "file",
                "bytes": size,
                "created_at": int(time.time()),
                "filename": filename,
                "purpose": purpose,
                "status": "processed",
            }
        )
        await self._write("INSERT OR IGNORE INTO files VALUES (?, ?, ?, ?)", (identity, owner, size, said(file)))
        return file

    async def file(self, owner: str, identity: str) -> FileObject:
        """Raises: NotFound."""
        found = await self._find("SELECT document FROM files WHERE id = ? AND owner = ?", (identity, owner))
        if not found:
            raise NotFound("There is no such file.", param="file_id")
        return FileObject.model_validate_json(found[0])

    async def files(self, owner: str) -> list[FileObject]:
        """The newest first."""
        found = await self._find("SELECT document FROM files WHERE owner = ? ORDER BY rowid DESC", (owner,))
        return [FileObject.model_validate_json(document) for document in found]

    async def drop(self, owner: str, identity: str) -> None:
        """Raises: NotFound."""
        await self.file(owner, identity)
        await self._write("DELETE FROM files WHERE id = ?", (identity,))
        await run_sync(partial(self.path(identity).unlink, missing_ok=True))

    async def add(self, owner: str, batch: Batch) -> None:
        query = "INSERT INTO batches VALUES (?, ?, ?, ?)"
        await self._write(query, (batch.id, owner, batch.status, said(batch)))

    async def change(self, owner: str, identity: str, *among: str, **fields: Any) -> Batch | None:
        """These fields alone, in one statement: whoever writes beside keeps what it wrote. None: in no such status."""
        query = (
            "UPDATE batches SET document = json_patch(document, ?), status = COALESCE(?, status) "
            "WHERE id = ? AND owner = ? AND status IN (SELECT value FROM json_each(?)) RETURNING document"
        )
        values = (json.dumps(fields), fields.get("status"), identity, owner, json.dumps(among))
        for (document,) in await self.rows.execute_fetchall(query, values):
            return Batch.model_validate_json(document)
        return None

    async def batch(self, owner: str, identity: str) -> Batch:
        """Raises: NotFound."""
        found = await self._find("SELECT document FROM batches WHERE id = ? AND owner = ?", (identity, owner))
        if not found:
            raise NotFound("There is no such batch.", param="batch_id")
        return Batch.model_validate_json(found[0])

    async def batches(self, owner: str) -> list[Batch]:
        """The newest first."""
        found = await self._find("SELECT document FROM batches WHERE owner = ? ORDER BY rowid DESC", (owner,))
        return [Batch.model_validate_json(document) for document in found]

    async def unfinished(self) -> list[tuple[str, Batch]]:
        """With their owners, the oldest first."""
        query = "SELECT owner, document FROM batches WHERE status IN (?, ?, ?) ORDER BY rowid"
        async with self.rows.execute(query, UNFINISHED) as found:
            return [(owner, Batch.model_validate_json(document)) for owner, document in await found.fetchall()]

    async def _find(self, query: str, values: Iterable[str]) -> list[str]:
        async with self.rows.execute(query, tuple(values)) as found:
            return [document for (document,) in await found.fetchall()]

    async def _write(self, query: str, values: Iterable[str | int]) -> None:
        await self.rows.execute(query, tuple(values))


def size_of(path: Path) -> int:
    return path.stat().st_size


def said(document: BaseModel) -> str:
    return document.model_dump_json(exclude_unset=True)
