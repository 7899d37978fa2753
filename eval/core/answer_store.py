"""Answers on disk as JSON lines, keyed by the hash of their request.

Each line is appended and synced. A process that is killed loses only the answers in flight. An incomplete last line is
dropped when the file is opened again. A complete line that is no answer is ignored and reported.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from pydantic import BaseModel, ConfigDict, FiniteFloat, JsonValue, ValidationError, field_validator

from eval.core.yes_score import YesScore
from eval.errors import InputError, RunError

ANSWERS_NAME = "answers.jsonl"  # in the folder of a run
MAX_LISTED_LINES = 5  # unreadable lines that a warning lists


class ReceivedClaim(BaseModel, extra="allow", strict=True):
    """A claim of a receipt. `start` and `end` are None for a phrase that is not in the answer."""

    start: int | None = None
    end: int | None = None
    probability: FiniteFloat


class ReceivedReceipt(BaseModel, extra="allow", strict=True):
    """The fields of a receipt that results are computed from. JSON has no infinite numbers and no nan."""

    claims: list[ReceivedClaim] | None = None
    steps: FiniteFloat = 0.0
    forward_passes: FiniteFloat = 0.0
    timings: dict[str, FiniteFloat] = {}


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
        yes_score: ln p(yes) - ln p(no) of plain decoding, in a run of yes/no questions.
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
    token_scores: list[tuple[str, FiniteFloat, FiniteFloat | None]] | None = None
    yes_score: YesScore | None = None

    @field_validator("receipt")
    @classmethod
    def _check_receipt(cls, receipt: dict[str, JsonValue] | None) -> dict[str, JsonValue] | None:
        try:
            ReceivedReceipt.model_validate(receipt or {})
        except ValidationError as error:
            raise ValueError(describe_error(error)) from None
        return receipt

    @property
    def claims(self) -> list[ReceivedClaim]:
        """The claims of the receipt that are in the answer."""
        receipt = ReceivedReceipt.model_validate(self.receipt or {})
        return [claim for claim in receipt.claims or () if claim.start is not None]


@dataclass(frozen=True, slots=True)
class UnreadableLine:
    """A complete line that is no answer.

    Attributes:
        number: Its number, counted from 1.
        problem: The reason.
    """

    number: int
    problem: str


@dataclass(frozen=True, slots=True)
class StoredAnswers:
    """The answers of a file.

    Attributes:
        by_key: Key to answer. If a key occurs twice, the first line wins.
        unreadable: The lines that are no answers. Their requests count as not answered.
    """

    by_key: dict[str, StoredAnswer]
    unreadable: list[UnreadableLine]


class AnswerStore:
    """A file of answers that one process writes. The first answer to a request stays.

    Attributes:
        file: The file.
        unreadable: The lines that were no answers when the file was opened.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.unreadable: list[UnreadableLine] = []
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
        stored = load_answers(self.file)
        self._answers, self.unreadable = stored.by_key, stored.unreadable
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


def load_answers(file: Path) -> StoredAnswers:
    """Load the complete lines of a file, without locking it.

    Args:
        file: The file.

    Returns:
        The answers, and the lines that are no answers.

    Raises:
        InputError: The file does not exist.
    """
    if not file.is_file():
        raise InputError("no such file. Is this the folder of a run?", file)
    answers, unreadable = dict[str, StoredAnswer](), list[UnreadableLine]()
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], 1):
        try:
            answer = StoredAnswer.model_validate_json(line)
        except ValidationError as error:
            unreadable.append(UnreadableLine(number, describe_error(error)))
        else:
            answers.setdefault(answer.key, answer)
    return StoredAnswers(answers, unreadable)


def describe_error(error: ValidationError) -> str:
    """Describe the first error of a validation with its field."""
    first = error.errors(include_url=False, include_input=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f'field "{field}": {first["msg"]}' if field else first["msg"]


def describe_unreadable(file: Path | str, lines: Sequence[UnreadableLine]) -> str:
    """Describe the lines of a file that are no answers, the first ones with the reason."""
    listed = "; ".join(f"line {line.number}: {line.problem}" for line in lines[:MAX_LISTED_LINES])
    return f"{file}: {len(lines)} lines are no answers and are ignored ({listed})."


def _complete_length(file: Path) -> int:
    """Count the bytes up to the end of the last complete line."""
    return file.read_bytes().rfind(b"\n") + 1


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
