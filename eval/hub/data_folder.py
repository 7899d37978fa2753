"""The data folder of a run. Tables are unpacked once into official files, in a folder named after their content."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from eval.core.dataset import resolve_data_folder
from eval.core.hashing import hash_file, hash_json
from eval.hub.layouts import OfficialFolder, list_companions, write_official_folder
from eval.hub.rows import (
    DATASET_PREFIX,
    HubRow,
    hash_tables,
    is_saved_dataset,
    iterate_tables,
    list_tables,
    load_dataset,
)

LAYOUT_VERSION = 1  # of the written files; another version unpacks again
KEY_LENGTH = 16


def open_data_folder(data: str, task: str) -> Path:
    """Return the folder with the official files that `--data` names.

    Args:
        data: `embedded`, a folder of official files, a parquet file, a folder with such files or of
            `Dataset.save_to_disk`, or `hf:` and the name of a dataset.
        task: Name of the task that reads the files.

    Returns:
        The folder. Tables are unpacked into the cache.
    """
    if data.startswith(DATASET_PREFIX):
        return _unpack_dataset(data, task)
    path = Path(data).expanduser()
    if data != "embedded" and path.exists():
        if is_saved_dataset(path):
            return _unpack_dataset(data, task)
        if tables := list_tables(path):
            companions = list_companions(task, data, path if path.is_dir() else path.parent)
            return _unpack(task, hash_tables(tables), iterate_tables(tables), companions)
    return resolve_data_folder(data)


def normalize_data(data: str) -> str:
    """Return the value of `--data` for a plan: an absolute path, `embedded`, or the name of a dataset."""
    if data == "embedded" or data.startswith(DATASET_PREFIX):
        return data
    return str(Path(data).expanduser().resolve())


def get_cache_folder() -> Path:
    """Return the folder of unpacked tables: `onlyseen` in `XDG_CACHE_HOME` or `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "onlyseen" / "data"


@cache
def _unpack_dataset(data: str, task: str) -> Path:
    dataset = load_dataset(data)
    companions = list_companions(task, data, dataset.folder)
    return _unpack(task, dataset.hash, dataset.iterate_rows(), companions)


def _unpack(task: str, key: str, rows: Iterable[HubRow], companions: Sequence[Path]) -> Path:
    if companions:
        key = hash_json([key, *map(hash_file, companions)])
    folder = get_cache_folder() / f"{task}-{LAYOUT_VERSION}-{key[:KEY_LENGTH]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{task}-") as temporary:
        unpacked = Path(temporary) / "data"
        unpacked.mkdir()
        write_official_folder(task, rows, OfficialFolder(unpacked, companions))
        with suppress(OSError):  # Another process has unpacked the same tables.
            unpacked.rename(folder)
    return resolve_data_folder(str(folder))
