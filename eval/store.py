"""Answers on disk: JSON lines, appended and synced one by one, found again by the key of their request.

Killed at any moment, it loses the answers that had not arrived. A last line without an end is the trace of that, and
is dropped.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from eval.errors import InputError, RunError


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    question: str
    strategy: str
    seed: int | None = None
    text: str
    finish: str | None = None
    tokens: int | None = None
    seconds: float
    attempts: int = 1
    receipt: dict[str, JsonValue] | None = None


class Store:
    """One writer at a time. The first answer to a request stays."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._descriptor: int | None = None
        self._answers: dict[str, Answer] = {}

    def __enter__(self) -> Self:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"{self.file} cannot be written: {error.strerror}. Choose another place.") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise RunError(f"{self.file}: another run is writing here. Wait for it, or choose another --out.") from None
        os.ftruncate(self._descriptor, whole(self.file))
        sync_folder(self.file.parent)
        self._answers = {answer.key: answer for answer in reversed(list(read(self.file)))}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: Answer) -> None:
        """Returns when it is on disk."""
        if answer.key in self._answers:
            return
        if self._descriptor is None:
            raise RunError(f"{self.file} is not open for writing.")
        line = answer.model_dump_json(exclude_none=True).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._descriptor, line) :]
            os.fsync(self._descriptor)
        except OSError as error:
            raise RunError(f"{self.file} cannot be written: {error.strerror}. What is there is kept.") from error
        self._answers[answer.key] = answer

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def whole(file: Path) -> int:
    """Bytes up to the end of the last whole line."""
    return file.read_bytes().rfind(b"\n") + 1


def read(file: Path) -> Iterator[Answer]:
    """Raises: InputError: a whole line that is no answer."""
    lines = file.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            yield Answer.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or None
            raise InputError(f"not an answer of a run: {first['msg']}", file, number, field) from None


def stored(file: Path) -> dict[str, Answer]:
    """Key -> answer, to read only."""
    if not file.is_file():
        raise InputError("there is no such file: is this the folder of a run?", file)
    return {answer.key: answer for answer in reversed(list(read(file)))}


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
