"""Rows of a benchmark on the Hugging Face hub, read from parquet files or with the library `datasets`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.core.hashing import hash_file, hash_json
from eval.core.parquet import iterate_parquet
from eval.errors import InputError

DATASET_PREFIX = "hf:"
"""Begins the name of a dataset that the library `datasets` loads."""
IMAGE_COLUMN = "image"
PATTERNS = ("*.parquet", "*/*.parquet", "*/*/*.parquet")  # depths at which the hub has parquet files
SAVED_NAMES = ("state.json", "dataset_dict.json")  # files of `Dataset.save_to_disk`
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")


@dataclass(frozen=True)
class HubRow:
    """One row with its image.

    Attributes:
        values: The other columns.
        image: Content of the image file, None for a row without one.
        image_name: Name of the image file, empty if the table has none.
        split: Name of the split.
        source: File or dataset.
        number: Number of the row in it, counted from 0.
    """

    values: Mapping[str, Any]
    image: bytes | None
    image_name: str
    split: str
    source: Path | str
    number: int

    def build_error(self, problem: str, column: str) -> InputError:
        """Build an error that names the position of this row."""
        return InputError(problem, self.source, None, f"[{self.number}].{column}")

    def find_text(self, *columns: str) -> str | None:
        """Return the first of `columns` that has a text or a number, as a text, or None."""
        for column in columns:
            value = self.values.get(column)
            if isinstance(value, str | int) and not isinstance(value, bool):
                return str(value).strip()
        return None

    def get_text(self, *columns: str) -> str:
        """Return the first of `columns` that has a text or a number, as a text.

        Args:
            columns: Names of columns.

        Returns:
            The text.

        Raises:
            InputError: None of the columns has one.
        """  # noqa: DOC502 - `build_error` builds it
        if (text := self.find_text(*columns)) is None:
            others = f", and so are {', '.join(columns[1:])}" if columns[1:] else ""
            listed = ", ".join(self.values)
            raise self.build_error(f"is missing or has no text{others}. The columns are {listed}", columns[0])
        return text

    def get_texts(self, column: str) -> list[str]:
        """Return the list of texts in a column.

        Args:
            column: Name of the column.

        Returns:
            The texts.

        Raises:
            InputError: The column has no such list.
        """  # noqa: DOC502 - `build_error` builds it
        value = self.values.get(column)
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise self.build_error("must be a list of strings", column)
        return value

    def get_image(self) -> bytes:
        """Return the content of the image.

        Returns:
            The bytes of the file.

        Raises:
            InputError: The row has none.
        """  # noqa: DOC502 - `build_error` builds it
        if self.image is None:
            raise self.build_error("has no image", IMAGE_COLUMN)
        return self.image


def list_tables(path: Path) -> list[Path]:
    """List the parquet files of a path: the file itself, or those in a folder and in two levels of folders below."""
    if path.is_file():
        return [path] if path.suffix == ".parquet" else []
    return sorted(file for pattern in PATTERNS for file in path.glob(pattern))


def is_saved_dataset(path: Path) -> bool:
    """Return whether the library `datasets` saved a folder."""
    return any((path / name).is_file() for name in SAVED_NAMES)


def hash_tables(files: Sequence[Path]) -> str:
    """Hash the content of parquet files and the names of their splits."""
    return hash_json([[find_split(file), hash_file(file)] for file in files])


def iterate_tables(files: Sequence[Path]) -> Iterator[HubRow]:
    """Iterate over the rows of parquet files."""
    for file in files:
        for number, values in iterate_parquet(file):
            yield build_row(values, find_split(file), file, number, file.parent)


def find_split(file: Path) -> str:
    """Return the split of a parquet file: its name without the shard, or its folder if the name is a number."""
    if found := SHARD.fullmatch(file.stem):
        return found[1]
    return file.parent.name if file.stem.isdecimal() else file.stem


def build_row(values: Mapping[str, Any], split: str, source: Path | str, number: int, folder: Path | None) -> HubRow:
    """Build a row from the values of all columns.

    Args:
        values: Value of each column. The image is its bytes, or a mapping with `bytes` and `path`.
        split: Name of the split.
        source: File or dataset.
        number: Number of the row in it.
        folder: Folder of images that are outside of the table. None if there is none.

    Returns:
        The row.

    Raises:
        InputError: The image has another form, or its file cannot be read.
    """  # noqa: DOC502 - `build_error` builds it
    row = HubRow({name: each for name, each in values.items() if name != IMAGE_COLUMN}, None, "", split, source, number)
    value = values.get(IMAGE_COLUMN)
    content, name = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    if content is None and isinstance(name, str) and folder is not None:
        try:
            content = (folder / name).read_bytes()
        except OSError as error:
            raise row.build_error(f"{name} cannot be read: {error.strerror}", IMAGE_COLUMN) from None
    if not isinstance(content, bytes | None):
        raise row.build_error("must be an image: bytes, or a struct with bytes and path", IMAGE_COLUMN)
    return HubRow(row.values, content, Path(name or "").name, split, source, number)


@dataclass(frozen=True)
class LoadedDataset:
    """Splits that the library `datasets` has loaded.

    Attributes:
        name: Name for errors.
        splits: Name of each split, and its rows. Images are not decoded.
        hash: Hash of the content.
        folder: Local folder of the dataset, None if only the library knows it.
    """

    name: str
    splits: list[tuple[str, Any]]
    hash: str
    folder: Path | None = None

    def iterate_rows(self) -> Iterator[HubRow]:
        """Iterate over the rows of all splits."""
        for split, rows in self.splits:
            for number, values in enumerate(rows):
                yield build_row(values, split, f"{self.name} {split}".strip(), number, None)


def load_dataset(name: str) -> LoadedDataset:
    """Load a dataset.

    Args:
        name: `hf:NAME`, `hf:NAME:CONFIG`, or a folder of `Dataset.save_to_disk`, with or without `hf:`.

    Returns:
        The splits.

    Raises:
        InputError: The library is not installed, or cannot load the dataset.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise InputError("needs the package datasets: pip install datasets", name, None, "--data") from None
    place, _, config = name.removeprefix(DATASET_PREFIX).partition(":")
    path = Path(place).expanduser()
    folder = path if path.is_dir() else None
    try:
        if is_saved_dataset(path):
            loaded = datasets.load_from_disk(str(path))
        elif folder:
            loaded = datasets.load_dataset(str(folder), config or None)
        else:
            loaded, folder = _load_named(datasets, place, config or None)
    except (OSError, ValueError, RuntimeError) as error:  # the errors of the library and of the hub are these
        raise InputError(f"cannot be loaded: {error}", name, None, "--data") from None
    splits = list(loaded.items()) if isinstance(loaded, Mapping) else [(str(loaded.split or ""), loaded)]
    undecoded = [(str(split), _keep_encoded(rows, datasets)) for split, rows in splits]
    hashes = [[split, [hash_file(Path(each["filename"])) for each in rows.cache_files]] for split, rows in splits]
    return LoadedDataset(name, undecoded, hash_json([hashes, [len(rows) for _, rows in splits]]), folder)


def _load_named(datasets: Any, name: str, config: str | None) -> tuple[Any, Path | None]:
    """Load a dataset from the hub or from the cache of the library.

    Without a connection the library reads only datasets that it has loaded before, and no downloaded repositories.

    Args:
        datasets: The library.
        name: Name of the dataset.
        config: Name of the configuration.

    Returns:
        The splits, and the folder of the repository if it is read from the cache of downloads.

    Raises:
        ConnectionError: There is no connection, and no cache has the dataset.
    """
    try:
        return datasets.load_dataset(name, config), None
    except ConnectionError:
        if (folder := _find_download(name)) is None:
            raise
        return datasets.load_dataset(str(folder), config), folder


def _find_download(name: str) -> Path | None:
    """Return the folder of a repository in the cache of downloads of the hub, None if it is not there."""
    hub = importlib.import_module("huggingface_hub")  # a requirement of datasets
    try:
        return Path(hub.snapshot_download(name, repo_type="dataset", local_files_only=True))
    except (OSError, ValueError):
        return None


def _keep_encoded(rows: Any, datasets: Any) -> Any:
    """Return rows whose images are bytes, so that they are not compressed again."""
    if isinstance(rows.features.get(IMAGE_COLUMN), datasets.Image):
        return rows.cast_column(IMAGE_COLUMN, datasets.Image(decode=False))
    return rows
