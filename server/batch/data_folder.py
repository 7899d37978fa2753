"""The folder of files and batches: one server's lock, the bound on its bytes, and files that are written safely."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path
from uuid import uuid4

from server.errors import StorageFull, StoreFailed
from server.middleware.request_body import MIN_BYTES_PER_SECOND

LOCK_NAME = "server.lock"
FILE_PREFIX = "file-"
UPLOAD_PREFIX = "upload-"
LOST_NAME = "lost"
FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT)
STALL_SECONDS = 2.0  # that an upload may be behind `MIN_BYTES_PER_SECOND` before it is the first to be dropped
STORAGE_FULL = "The server's storage is full: delete files first."
SHARE_FULL = "The files of this API key fill its share of the server's storage: delete files first."


class DataFolderError(Exception):
    """The folder cannot be used, so the server cannot start."""


class DataFolder:
    """A folder that one server uses at a time.

    The bytes of each owner's files are counted in memory. Uploads count as far as they have arrived. When the space
    runs out, unfinished uploads are dropped: for a result any of them, for an upload the stalled and the newer ones.
    """

    def __init__(self, path: Path | None, max_bytes: int, max_owner_bytes: int | None = None) -> None:
        """Create the object, which `open` makes usable.

        Args:
            path: The folder, or None for a temporary folder that is removed when it is closed.
            max_bytes: Bound on the bytes of all files together.
            max_owner_bytes: Bound on the bytes of one owner's files, or None for no such bound.
        """
        self.max_bytes = max_bytes
        self._max_owner_bytes = max_owner_bytes or max_bytes
        self._path = path
        self._temporary_dir: tempfile.TemporaryDirectory[str] | None = None
        self._lock_descriptor: int | None = None
        self._used: Counter[str] = Counter()  # owner -> bytes
        self._partial_files: list[PartialFile] = []  # oldest first
        self._counter_lock = threading.Lock()  # reservations come from several threads

    def open(self) -> None:
        """Create the folder, lock it and remove unfinished uploads. A second call does nothing.

        Raises:
            DataFolderError: Another server uses the folder, or it cannot be written.
        """
        if self._lock_descriptor is not None:
            return
        if self._path is None:
            self._temporary_dir = tempfile.TemporaryDirectory(prefix="onlyseen-")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock_descriptor = lock_file(self.path / LOCK_NAME)
            for unfinished in self.path.glob(f"{UPLOAD_PREFIX}*"):
                unfinished.unlink()
        except BlockingIOError:
            raise DataFolderError(
                f"data_dir: another server uses {self.path} ({read_holder(self.path / LOCK_NAME)}). "
                "Give each server a folder of its own."
            ) from None
        except OSError as error:
            self.close()
            raise DataFolderError(f"data_dir: {self.path} cannot be used: {error.strerror}.") from error

    def count_files(self, owners: Mapping[str, str] | None) -> list[str]:
        """Count the stored files, and remove those without an owner, which no API key can delete.

        Args:
            owners: File id -> owner. If they are not known, no file is removed, and all count for the owner "".

        Returns:
            The ids of the removed files.

        Raises:
            DataFolderError: A file cannot be read or removed.
        """
        removed, used = [], Counter[str]()
        try:
            for path in self.path.glob(f"{FILE_PREFIX}*"):
                owner = "" if owners is None else owners.get(path.name)
                if owner is None:
                    path.unlink()
                    removed.append(path.name)
                else:
                    used[owner] += path.stat().st_size
        except OSError as error:
            raise DataFolderError(f"data_dir: {self.path} cannot be used: {error.strerror}.") from error
        with self._counter_lock:
            self._used = used
        return removed

    def move_files(self) -> list[str]:
        """Move all stored files into the subfolder `lost`, which does not count.

        Returns:
            The ids of the files.

        Raises:
            DataFolderError: A file cannot be moved.
        """
        lost, moved = self.path / LOST_NAME, list[str]()
        try:
            for path in self.path.glob(f"{FILE_PREFIX}*"):
                lost.mkdir(exist_ok=True)
                path.rename(lost / path.name)
                moved.append(path.name)
            if moved:
                sync_folder(lost)
                sync_folder(self.path)
        except OSError as error:
            raise DataFolderError(f"data_dir: {self.path} cannot be used: {error.strerror}.") from error
        return moved

    def close(self) -> None:
        """Release the lock, and remove a temporary folder."""
        if self._lock_descriptor is not None:
            os.close(self._lock_descriptor)
            self._lock_descriptor = None
        if self._temporary_dir is not None:
            self._temporary_dir.cleanup()
            self._temporary_dir = None

    @property
    def path(self) -> Path:
        """The path of the folder.

        Raises:
            RuntimeError: The folder is not open.
        """
        if self._path is not None:
            return self._path
        if self._temporary_dir is None:
            raise RuntimeError("the data folder is not open")
        return Path(self._temporary_dir.name)

    def get_path(self, file_id: str) -> Path:
        """Return the path of a file's content.

        Ids are made by the server, or looked up before, so that no client can name a path.
        """
        return self.path / file_id

    def check_fits(self, owner: str, size: int) -> None:
        """Check that a file can fit if all unfinished uploads are dropped. Nothing is reserved.

        Args:
            owner: Owner of the file.
            size: Size of the file in bytes.

        Raises:
            StorageFull: The file cannot fit.
        """  # noqa: DOC502 - `_check_bounds` raises it
        with self._counter_lock:
            self._check_bounds(owner, size, self._partial_files)

    def reserve(self, owner: str, size: int, partial_file: PartialFile | None = None) -> None:
        """Reserve bytes before they are written. Slow if files of uploads have to be removed: call it in a thread.

        Args:
            owner: Owner of the file.
            size: Bytes to add.
            partial_file: The upload that grows, or None for a result.

        Raises:
            StorageFull: The folder would exceed a bound, or the upload has been dropped. Nothing is reserved.
        """
        with self._counter_lock:
            if partial_file is not None and partial_file.is_dropped:
                raise StorageFull(STORAGE_FULL, param="file")
            dropped = [] if self._fits(owner, size) else self._make_room(owner, size, partial_file)
            self._used[owner] += size
            if partial_file is not None:
                partial_file.size += size
        for file in dropped:
            file.remove()

    def _fits(self, owner: str, size: int) -> bool:
        is_share_kept = self._used[owner] + size <= self._max_owner_bytes
        return is_share_kept and self._used.total() + size <= self.max_bytes

    def _make_room(self, owner: str, size: int, partial_file: PartialFile | None) -> list[PartialFile]:
        """Drop uploads until a file fits, or raise `StorageFull` before any is dropped.

        Returns:
            The dropped uploads, whose files are still to be removed.
        """
        now = time.monotonic()
        droppable = sorted(self._partial_files, key=lambda file: file.is_stalled(now))  # stable: the newest is last
        if partial_file is not None:
            droppable = droppable[droppable.index(partial_file) + 1 :]
        self._check_bounds(owner, size, droppable)
        own = [file for file in droppable if file.owner == owner]
        while own and self._used[owner] + size > self._max_owner_bytes:
            self._drop(own.pop())
        others = [file for file in droppable if not file.is_dropped]
        while others and self._used.total() + size > self.max_bytes:
            self._drop(others.pop())
        return [file for file in droppable if file.is_dropped]

    def _check_bounds(self, owner: str, size: int, droppable: Sequence[PartialFile]) -> None:
        own_size = sum(file.size for file in droppable if file.owner == owner)
        if self._used[owner] + size - own_size > self._max_owner_bytes:
            raise StorageFull(SHARE_FULL if self._max_owner_bytes < self.max_bytes else STORAGE_FULL, param="file")
        if self._used.total() + size - sum(file.size for file in droppable) > self.max_bytes:
            raise StorageFull(STORAGE_FULL, param="file")

    def release(self, owner: str, size: int) -> None:
        """Release bytes that were removed, or reserved and not written."""
        with self._counter_lock:
            self._used[owner] -= size

    def remove(self, owner: str, file_id: str) -> None:
        """Remove a file's content if it exists, and release its bytes. Slow: call it in a thread."""
        path = self.get_path(file_id)
        with convert_store_errors(), suppress(FileNotFoundError):
            size = path.stat().st_size
            path.unlink()
            self.release(owner, size)

    def add_partial_file(self, owner: str) -> PartialFile:
        """Create the file of an upload, which its `publish` or `drop_partial_file` ends."""
        file = PartialFile(self, owner)
        with self._counter_lock:
            self._partial_files.append(file)
        return file

    def keep_partial_file(self, file: PartialFile) -> None:
        """Stop to regard a complete upload as unfinished. Its bytes remain counted.

        Raises:
            StorageFull: The upload has been dropped.
        """
        with self._counter_lock:
            if file.is_dropped:
                raise StorageFull(STORAGE_FULL, param="file")
            self._partial_files.remove(file)

    def drop_partial_file(self, file: PartialFile) -> None:
        """Remove an unfinished upload, and release its bytes. Slow: call it in a thread."""
        with self._counter_lock:
            if file not in self._partial_files:
                return
            self._drop(file)
        file.remove()

    def _drop(self, file: PartialFile) -> None:
        """Release the bytes of an upload. Its file is removed without the lock, for which the event loop waits."""
        self._partial_files.remove(file)
        file.is_dropped = True
        self._used[file.owner] -= file.size
        file.size = 0


class PartialFile:
    """The file of an upload while it arrives.

    Attributes:
        owner: The owner.
        size: Reserved bytes.
        is_dropped: Whether the folder has released the bytes of the file, which is removed or about to be.
    """

    def __init__(self, folder: DataFolder, owner: str) -> None:
        self.owner = owner
        self.size = 0
        self.is_dropped = False
        self._folder = folder
        self._path = folder.get_path(f"{UPLOAD_PREFIX}{uuid4().hex}")
        self._file: FileIO | None = None
        self._lock = threading.Lock()  # the folder removes a file in another thread than the one that writes it
        self._stalls_at = time.monotonic() + STALL_SECONDS

    def is_stalled(self, now: float) -> bool:
        """Return whether the upload arrives too slowly. Single bytes do not change that."""
        return now > self._stalls_at

    def write(self, data: bytes) -> None:
        """Write a part. Slow: call it in a thread.

        Args:
            data: The part.

        Raises:
            StorageFull: The folder would exceed a bound, or has dropped the file.
            StoreFailed: The part cannot be written.
        """  # noqa: DOC502 - `reserve` and `convert_store_errors` raise them
        now = time.monotonic()
        self._stalls_at = min(max(self._stalls_at, now) + len(data) / MIN_BYTES_PER_SECOND, now + STALL_SECONDS)
        self._folder.reserve(self.owner, len(data), self)
        with self._lock, convert_store_errors():
            write_all(self._open(), data)

    def _open(self) -> FileIO:
        if self.is_dropped:
            raise StorageFull(STORAGE_FULL, param="file")
        if self._file is None:
            self._file = self._path.open("xb", buffering=0)
        return self._file

    def publish(self, file_id: str) -> None:
        """Sync the file and move it to its place. Slow: call it in a thread.

        Args:
            file_id: New id of the file.
        """
        self._folder.keep_partial_file(self)
        try:
            with self._lock, convert_store_errors():
                with self._open() as file:
                    os.fsync(file.fileno())
                self._path.rename(self._folder.get_path(file_id))
                sync_folder(self._path.parent)
        except BaseException:
            if not self._folder.get_path(file_id).exists():
                self.is_dropped = True
                self.remove()
                self._folder.release(self.owner, self.size)
            raise

    def remove(self) -> None:
        """Remove the file after a running write. Slow: call it in a thread. The folder releases the bytes."""
        with self._lock, suppress(OSError):
            if self._file is not None:
                self._file.close()
            self._path.unlink(missing_ok=True)


class AppendFile:
    """A file whose appended data is on disk when `append` returns. A failed append leaves the file as it was."""

    def __init__(self, folder: DataFolder, owner: str, path: Path) -> None:
        """Create the object. The first append opens the file or creates it."""
        self._folder = folder
        self._owner = owner
        self._path = path
        self._lock = threading.Lock()
        self._file: FileIO | None = None
        self._size = 0
        self._is_closed = False

    def append(self, data: bytes) -> None:
        """Append data and sync it. Slow: call it in a thread.

        Args:
            data: The data.

        Raises:
            StorageFull: The folder would exceed its bound.
            StoreFailed: The data cannot be written.
        """  # noqa: DOC502 - `reserve` and `convert_store_errors` raise them
        self._folder.reserve(self._owner, len(data))
        try:
            with self._lock, convert_store_errors():
                self._write(data)
        except BaseException:
            self._folder.release(self._owner, len(data))
            raise

    def _write(self, data: bytes) -> None:
        file = self._open()
        try:
            file.truncate(self._size)  # removes what a failed append has left
            write_all(file, data)
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(self._size)
            raise
        self._size += len(data)

    def _open(self) -> FileIO:
        if self._is_closed:
            raise StoreFailed("The file is closed.")
        if self._file is None:
            file = self._path.open("ab", buffering=0)
            try:
                self._size = file.seek(0, os.SEEK_END)
                sync_folder(self._path.parent)
            except OSError:
                file.close()
                raise
            self._file = file
        return self._file

    def close(self) -> None:
        """Close the file after a running append."""
        with self._lock:
            self._is_closed = True
            if self._file is not None:
                self._file.close()


def write_all(file: FileIO, data: bytes) -> None:
    """Write all data to an unbuffered file, whose `write` may write less."""
    written = 0
    while written < len(data):
        written += file.write(data[written:])


@contextmanager
def convert_store_errors() -> Iterator[None]:
    """Convert errors of the file system and of SQLite to `StoreFailed`.

    Raises:
        StoreFailed: The block raised such an error.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        is_full = getattr(error, "errno", None) in FULL_DISK_ERRORS or "disk is full" in str(error)
        reason = "The server's disk is full." if is_full else "The server's storage fails."
        raise StoreFailed(reason) from error


def lock_file(path: Path) -> int:
    """Create and lock a file, and write the process into it.

    Args:
        path: The lock file.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        OSError: The file cannot be created. `BlockingIOError`: another process holds the lock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    with suppress(OSError):  # on a full disk, the holder is unknown and the lock still holds
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return descriptor


def read_holder(path: Path) -> str:
    """Read the process that holds a lock file."""
    try:
        return path.read_text(errors="replace").strip()[:200] or "an unknown process"
    except OSError:
        return "an unknown process"


def sync_folder(folder: Path) -> None:
    """Sync the entries of a folder, so that a new or renamed file survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
