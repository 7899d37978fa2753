"""Reads the items of a job: folders of pictures, JSON lines, parquet files and WebDataset archives.

Only the current picture or the current slice of a parquet file is in memory.
"""

from __future__ import annotations

import base64
import binascii
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self, TypeVar

from pydantic_core import from_json

from eval.bulk.items import BulkItem, split_prompts
from eval.core.parquet import count_parquet, iterate_parquet
from eval.errors import InputError

T = TypeVar("T")

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
LINE_SUFFIXES = frozenset({".jsonl", ".ndjson"})
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz")
SEPARATOR = "::"  # between a file and the place inside it


@dataclass(frozen=True)
class InputOptions:
    """How records become items.

    Attributes:
        prompts: Prompts of all pictures. Empty if each record has its own.
        image_column: Column of the picture: its bytes, its path, a data URL, or a struct with `bytes` and `path`.
        prompt_column: Column of the prompt, if `prompts` is empty.
        id_column: Column of the id. A record without it has its place in the input as its id.
    """

    prompts: tuple[str, ...] = ()
    image_column: str = "image"
    prompt_column: str = "prompt"
    id_column: str = "id"


def list_files(inputs: list[Path]) -> Iterator[tuple[Path, str]]:
    """List the files of the inputs.

    A folder with archives or parquet files stands for these, any other folder for its pictures.

    Args:
        inputs: Files and folders.

    Yields:
        Each file, and its name in the job.

    Raises:
        InputError: An input does not exist, or a folder has no file of a known kind.
    """
    for entry in inputs:
        if entry.is_file():
            yield entry, entry.name
            continue
        if not entry.is_dir():
            raise InputError("no such file or folder", entry)
        suffixes = select_suffixes(entry)
        for file in walk(entry):
            if file.name.lower().endswith(suffixes):
                yield file, file.relative_to(entry).as_posix()


def select_suffixes(folder: Path) -> tuple[str, ...]:
    """Select the kind of files for which a folder stands.

    Args:
        folder: The folder.

    Returns:
        The suffixes of these files.

    Raises:
        InputError: It has no file of a known kind.
    """
    kinds = (ARCHIVE_SUFFIXES, (".parquet",), tuple(sorted(PICTURE_SUFFIXES)))
    found = {kind for file in walk(folder) for kind in kinds if file.name.lower().endswith(kind)}
    for kind in kinds:
        if kind in found:
            return kind
    raise InputError("has no pictures, parquet files or archives. Name files of JSON lines themselves", folder)


def walk(folder: Path) -> Iterator[Path]:
    """Iterate over the files below a folder, in the order of their names.

    Links are followed, each folder is visited once, and hidden files and folders are left out.

    Args:
        folder: The folder.

    Yields:
        The files.

    Raises:
        InputError: A folder cannot be read. Its pictures would be missing.
    """  # noqa: DOC502 - the inner function raises it

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot be read: {error.strerror}", error.filename)

    visited = set[tuple[int, int]]()
    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(root)
        if (place := (status.st_dev, status.st_ino)) in visited:
            folders.clear()
            continue
        visited.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(root, name)


def iterate_items(inputs: list[Path], options: InputOptions) -> Iterator[BulkItem]:
    """Iterate over the items of the inputs.

    Args:
        inputs: Files and folders.
        options: How records become items.

    Yields:
        The items. One whose picture cannot be read has a `problem`.
    """
    for file, name in list_files(inputs):
        yield from iterate_file(file, name, options)


def iterate_file(file: Path, name: str, options: InputOptions) -> Iterator[BulkItem]:
    """Iterate over the items of one file. Names that are not UTF-8 are escaped, because no row can hold them.

    Args:
        file: The file.
        name: Its name in the job.
        options: How records become items.

    Yields:
        The items.

    Raises:
        InputError: The file has no known suffix, or a picture comes without a prompt.
    """  # noqa: DOC502 - the inner function raises it
    for item in _iterate_file(file, name, options):
        problem = None if item.problem is None else escape_name(item.problem)
        yield replace(item, id=escape_name(item.id), source=escape_name(item.source), problem=problem)


def escape_name(name: str) -> str:
    """Escape the bytes of a file name that are not UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _iterate_file(file: Path, name: str, options: InputOptions) -> Iterator[BulkItem]:
    lowered = file.name.lower()
    if lowered.endswith(tuple(PICTURE_SUFFIXES)):
        if not options.prompts:
            raise InputError("a picture file has no prompt. Add --prompt", file)
        yield from expand(read_picture(file), {}, name, str(file), options)
    elif lowered.endswith(tuple(LINE_SUFFIXES)):
        yield from _iterate_records(_read_lines(file), file, name, options)
    elif lowered.endswith(".parquet"):
        yield from _iterate_records(iterate_parquet(file), file, name, options)
    elif lowered.endswith(ARCHIVE_SUFFIXES):
        yield from _iterate_samples(file, name, options)
    else:
        raise InputError("is no picture, .jsonl, .parquet or .tar file", file)


def count_items(inputs: list[Path], options: InputOptions) -> int:
    """Count the items of the inputs without reading pictures. Archives are read up to the headers of their members."""
    prompts = len(options.prompts) or 1
    return prompts * sum(count_records(file) for file, _ in list_files(inputs))


def count_records(file: Path) -> int:
    """Count the pictures of a file."""
    lowered = file.name.lower()
    if lowered.endswith(".parquet"):
        return count_parquet(file)
    if lowered.endswith(tuple(LINE_SUFFIXES)):
        with file.open("rb") as lines:
            return sum(1 for line in lines if line.strip())
    if lowered.endswith(ARCHIVE_SUFFIXES):
        return sum(1 for _ in _group_members(file, lambda _, member: member.size))
    return 1


def expand(
    picture: BulkItem, record: Mapping[str, Any], name: str, source: str, options: InputOptions
) -> Iterator[BulkItem]:
    """Iterate over the items of one picture, one for each prompt."""
    identifier = record.get(options.id_column)
    has_id = isinstance(identifier, str | int) and not isinstance(identifier, bool)
    try:
        prompts = split_prompts(record, options.prompts, options.prompt_column)
    except ValueError as error:
        picture, prompts = replace(picture, problem=picture.problem or str(error)), [""]
    for prompt in prompts:
        yield replace(picture, id=str(identifier) if has_id else name, source=source, prompt=prompt)


def read_picture(file: Path) -> BulkItem:
    """Read a picture file. An unreadable one gives an item with a problem."""
    try:
        return build_picture(file.read_bytes())
    except (OSError, ValueError) as error:  # a path with a null character is a ValueError
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return build_problem(f"the picture cannot be read: {file}: {reason}")


def build_picture(content: bytes) -> BulkItem:
    """Build an item without id and prompt."""
    return BulkItem(id="", scope="", image=None, prompt="", content=content)


def build_problem(problem: str) -> BulkItem:
    """Build an item that cannot be sent."""
    return BulkItem(id="", scope="", image=None, prompt="", problem=problem)


def _iterate_records(
    records: Iterable[tuple[int, dict[str, Any] | str]], file: Path, name: str, options: InputOptions
) -> Iterator[BulkItem]:
    """Iterate over the items of numbered records. A record that is a text is the problem of its line."""
    for number, record in records:
        place = f"{name}{SEPARATOR}{number}"
        source = f"{file}{SEPARATOR}{number}"
        if isinstance(record, str):
            yield replace(build_problem(record), id=place, source=source)
        else:
            picture = read_column(record.get(options.image_column), file.parent, options.image_column)
            yield from expand(picture, record, place, source, options)


def read_column(value: object, folder: Path, column: str) -> BulkItem:
    """Read the picture of a record.

    Args:
        value: Bytes, a path, a data URL, or a mapping with `bytes` and `path`, as the library `datasets` writes it.
        folder: Relative paths begin here.
        column: Name of the column, for the problem.

    Returns:
        The item, without id and prompt.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return build_picture(value)
    if isinstance(value, str) and value.startswith("data:"):
        try:
            return build_picture(base64.b64decode(value.partition(",")[2], validate=True))
        except binascii.Error as error:
            return build_problem(f'field "{column}": the data URL is not base64: {error}')
    if isinstance(value, str) and value:
        return read_picture(folder / value)
    return build_problem(f'field "{column}": is missing, or neither bytes nor a path')


def _read_lines(file: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                value = from_json(line)  # unlike `json`, it rejects lone surrogates, which no request can hold
            except ValueError as error:
                yield number, f"line {number} is not JSON: {error}"
            else:
                yield number, value if isinstance(value, dict) else f"line {number} is not a JSON object"


def _iterate_samples(file: Path, name: str, options: InputOptions) -> Iterator[BulkItem]:
    """Iterate over the items of a WebDataset archive: a picture, and the columns of the JSON file beside it."""
    for key, members in _group_members(file, _read_member):
        record: dict[str, Any] = {}
        if "json" in members:
            try:
                record = dict(from_json(members["json"]))
            except (ValueError, TypeError) as error:
                problem = f"{key}.json is no JSON object: {error}"
                yield replace(build_problem(problem), id=f"{name}{SEPARATOR}{key}", source=f"{file}{SEPARATOR}{key}")
                continue
        content = next((members[suffix] for suffix in members if f".{suffix}" in PICTURE_SUFFIXES), None)
        picture = build_problem("the sample has no picture") if content is None else build_picture(content)
        yield from expand(picture, record, f"{name}{SEPARATOR}{key}", f"{file}{SEPARATOR}{key}", options)


class ArchiveHeader(tarfile.TarInfo):
    """The header of a member. If it is damaged, it is an error, while `tarfile` takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile_)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(str(error)) from None


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = archive.extractfile(member)
    return opened.read() if opened else b""


def _group_members(
    file: Path, read: Callable[[tarfile.TarFile, tarfile.TarInfo], T]
) -> Iterator[tuple[str, dict[str, T]]]:
    """Iterate over the samples of an archive: members side by side whose names agree up to the first dot."""
    current, members = "", dict[str, T]()
    try:
        with tarfile.open(file, "r", tarinfo=ArchiveHeader) as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps them, in memory for every sample
                folder, _, base = member.name.rpartition("/")
                stem, dot, suffix = base.partition(".")
                if not member.isfile() or not dot or not stem:
                    continue
                key = str(PurePosixPath(folder, stem))
                if key != current and members:
                    yield current, members
                    members = {}
                current = key
                members[suffix.lower()] = read(archive, member)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"cannot be read: {error}", file) from None
    if members:
        yield current, members
