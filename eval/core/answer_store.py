"""Answers on disk as JSON lines, keyed by the hash of their request.

Each line is appended and synced. A process that is killed loses only the answers in flight. An incomplete last line is
dropped when the file is opened again.
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


class ReceivedClaim(BaseModel, extra="allow"):
    """A claim of a receipt. `start` and `end` are None for a phrase that is not in the answer."""

    start: int | None = None
    end: int | None = None
    probability: float


class StoredAnswer(BaseModel):
    """One line of answers.jsonl.

    Attributes:
        key: Hash of all that the answer depends on.
        question: Id of the question.
        strategy: Label of the strategy.
        seed: Seed of the request, None under greedy decoding.
        text: The generated text.
        finish: The finish reason.
        tokens: Number of generated tokens, if the server reports it.
        seconds: Wall-clock time of the request.
        attempts: Number of attempts.
        receipt: The `onlyseen` object of the response.
        token_scores: Text, log-probability and grounding of each token, in a run with `--check`.
    """

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
    token_scores: list[tuple[str, float, float | None]] | None = None

    @property
    def claims(self) -> list[ReceivedClaim]:
        """The claims of the receipt that are in the answer."""
        claims = (self.receipt or {}).get("claims")
        checked = [ReceivedClaim.model_validate(claim) for claim in (claims if isinstance(claims, list) else [])]
        return [claim for claim in checked if claim.start is not None]


class AnswerStore:
    """A file of answers that one process writes. The first answer to a request stays."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._descriptor: int | None = None
        self._answers: dict[str, StoredAnswer] = {}

    def __enter__(self) -> Self:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise RunError(f"{self.file} cannot be written: {error.strerror}. Choose another folder.") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._close()
            raise RunError(
                f"{self.file}: another run is writing to this file. Wait for it, or choose another --out."
            ) from None
        os.ftruncate(self._descriptor, _complete_length(self.file))
        _sync_folder(self.file.parent)
        self._answers = load_answers(self.file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> StoredAnswer:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: StoredAnswer) -> None:
        """Append an answer and return when it is on disk. A key that is already stored is ignored.

        Args:
            answer: The answer.

        Raises:
            RunError: The file is not open, or cannot be written.
        """
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
            raise RunError(f"{self.file} cannot be written: {error.strerror}. Stored answers are not lost.") from error
        self._answers[answer.key] = answer

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def read_answers(file: Path) -> Iterator[StoredAnswer]:
    """Read all complete lines of a file.

    Args:
        file: The file.

    Yields:
        The answers, in the order of the lines.

    Raises:
        InputError: A complete line is not an answer.
    """
    lines = file.read_bytes().split(b"\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            yield StoredAnswer.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, first["loc"])) or None
            raise InputError(f"not an answer of a run: {first['msg']}", file, number, field) from None


def load_answers(file: Path) -> dict[str, StoredAnswer]:
    """Load the answers of a file by key, without locking it.

    Args:
        file: The file.

    Returns:
        Key to answer. If a key occurs twice, the first line wins.

    Raises:
        InputError: The file does not exist.
    """
    if not file.is_file():
        raise InputError("no such file. Is this the folder of a run?", file)
    return {answer.key: answer for answer in reversed(list(read_answers(file)))}


def _complete_length(file: Path) -> int:
    """Count the bytes up to the end of the last complete line."""
    return file.read_bytes().rfind(b"\n") + 1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
