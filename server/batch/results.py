"""The result files of a batch: its answers and its errors, which can be fetched from the first stored line on."""

from __future__ import annotations

from collections.abc import Generator, Set
from pathlib import Path

import structlog
from anyio.to_thread import run_sync

from server.batch.data_folder import AppendFile, convert_store_errors
from server.batch.jsonl import recover_finished_ids
from server.batch.store import BatchStore, get_result_file_ids
from server.errors import NotFound

log = structlog.get_logger("onlyseen.server")

FIELDS = ("output_file_id", "error_file_id")  # of the batch object


class ResultFiles:
    """The result files of a running batch.

    Attributes:
        counts: Number of answers and of errors on disk.
        recovered_ids: Hashes of the custom_ids with a result of an earlier process.
    """

    def __init__(self, store: BatchStore, owner: str, batch_id: str) -> None:
        self.counts = [0, 0]
        self.recovered_ids: set[bytes] = set()
        self._store = store
        self._owner = owner
        self._batch_id = batch_id
        self._paths = [store.get_path(file_id) for file_id in get_result_file_ids(batch_id)]
        self._files = [AppendFile(store.folder, owner, path) for path in self._paths]
        self._registered: dict[str, str] = {}  # field of the batch -> file id

    def recover(self) -> Generator[None, None, None]:
        """Recover the results of an earlier process. Slow: run it in slices.

        Yields:
            Nothing, after each line.
        """
        with convert_store_errors():
            for index, path in enumerate(self._paths):
                ids = yield from self._recover_file(path, self.recovered_ids)
                self.counts[index] = len(ids)
                self.recovered_ids |= ids

    def _recover_file(self, path: Path, known_ids: Set[bytes]) -> Generator[None, None, set[bytes]]:
        size = path.stat().st_size if path.exists() else 0
        ids = yield from recover_finished_ids(path, known_ids)
        if path.exists() and (damaged := size - path.stat().st_size):
            log.warning("damaged_results_removed", file=path.name, bytes=damaged)
            self._store.folder.release(self._owner, damaged)
        return ids

    async def append(self, result: bytes, is_answer: bool) -> None:
        """Store a result, which is on disk afterwards.

        Args:
            result: The output line.
            is_answer: Whether it is an answer and not an error.
        """
        index = 0 if is_answer else 1
        await run_sync(self._files[index].append, result)
        self.counts[index] += 1

    async def register(self) -> dict[str, str]:
        """Register the files that have results, so that they can be fetched.

        Returns:
            The fields of the batch that name them.
        """
        for index, (field, file_id) in enumerate(zip(FIELDS, get_result_file_ids(self._batch_id), strict=True)):
            if self.counts[index] and field not in self._registered:
                try:
                    await self._store.get_file(self._owner, file_id)
                except NotFound:
                    await self._store.register_result(self._owner, file_id, get_filename(self._batch_id, field))
                self._registered[field] = file_id
        return dict(self._registered)

    def close(self) -> None:
        """Close the files after running appends."""
        for file in self._files:
            file.close()


async def attach_results(store: BatchStore, owner: str, batch_id: str) -> dict[str, str | None]:
    """Register the complete result files of a batch, with their sizes, and remove empty ones.

    Args:
        store: The store.
        owner: Owner of the batch.
        batch_id: Id of the batch.

    Returns:
        The fields of the batch that name the files.
    """
    fields: dict[str, str | None] = dict.fromkeys(FIELDS)
    for field, file_id in zip(FIELDS, get_result_file_ids(batch_id), strict=True):
        if await run_sync(remove_if_empty, store.get_path(file_id)):
            await store.register_result(owner, file_id, get_filename(batch_id, field))
            fields[field] = file_id
    return fields


def get_filename(batch_id: str, field: str) -> str:
    """Return the name that a result file has for clients."""
    return f"{batch_id}_{field.removesuffix('_file_id')}.jsonl"


def remove_if_empty(path: Path) -> bool:
    """Remove an empty file, and return whether the file still exists."""
    with convert_store_errors():
        if path.exists() and path.stat().st_size == 0:
            path.unlink()
        return path.exists()
