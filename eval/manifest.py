"""What a run was made from: its plan, and hashes of everything that its numbers depend on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from eval.errors import InputError, RunError
from eval.plan import Plan
from eval.question import Question, hash_of
from eval.request import digest
from eval.sheet import Sheet
from eval.tasks.task import Task

NAME = "manifest.json"
FORMAT = 1


class Manifest(BaseModel):
    format: int = FORMAT
    plan: Plan
    server: str
    door: str
    files: dict[str, str]  # name -> SHA-256: questions, annotations
    images: str  # of all names and hashes
    ids: str  # of all question ids, in order
    prompts: str
    answers: str  # of all keys and texts that were scored
    versions: dict[str, str]

    @classmethod
    def of(cls, plan: Plan, task: Task, questions: list[Question], sheet: Sheet, server: str, door: str) -> Manifest:
        return cls(
            plan=plan,
            server=server,
            door=door,
            files={
                str(file.relative_to(plan.folder)) if file.is_relative_to(plan.folder) else file.name: hash_of(file)
                for file in task.files()
            },
            images=digest(sorted({f"{question.image.name} {question.image_hash}" for question in questions})),
            ids=digest([question.id for question in questions]),
            prompts=digest([question.prompt for question in questions]),
            answers=digest(
                sorted({f"{answer.key} {answer.text}" for column in sheet.answers.values() for answer in column})
            ),
            versions=versions(),
        )

    def differences(self, other: Manifest) -> list[str]:
        """What is no longer as it was, apart from versions."""
        found = [
            f"the file {name}"
            for name in sorted(self.files.keys() | other.files.keys())
            if self.files.get(name) != other.files.get(name)
        ]
        return found + [
            f"the {name}"
            for name in ("images", "ids", "prompts", "answers")
            if getattr(self, name) != getattr(other, name)
        ]


def versions(packages: Iterable[str] = ("numpy", "scipy", "statsmodels", "nltk", "onlyseen")) -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read(folder: Path) -> Manifest:
    """Raises: InputError: no run, or not one of this version."""
    file = folder / NAME
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError:
        raise InputError("there is no such file: is this the folder of a finished run?", file) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"not a manifest: {first['msg']}", file, None, ".".join(map(str, first["loc"]))) from None


def refuse_other_format(manifest: Manifest, folder: Path) -> None:
    if manifest.format != FORMAT:
        raise RunError(f"{folder} was written in format {manifest.format}; this program reads {FORMAT}.")
