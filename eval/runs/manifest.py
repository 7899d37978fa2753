"""The manifest of a run: its plan, and hashes of everything that the numbers depend on."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterable
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from eval.core.answer_store import StoredAnswer
from eval.core.hashing import hash_file, hash_json
from eval.core.task import BenchmarkQuestion, BenchmarkTask
from eval.errors import InputError, RunError
from eval.runs.plan import RunPlan

MANIFEST_NAME = "manifest.json"
FORMAT = 1


class Manifest(BaseModel):
    """The content of manifest.json.

    Attributes:
        strategy_via: How requests selected their strategy.
        files: File name to SHA-256, of questions and annotations.
        images: Hash of all image names and image hashes.
        ids: Hash of all question ids, in order.
        prompts: Hash of all prompts, in order.
        answers: Hash of all keys and texts that were scored.
        versions: Versions of Python and of the packages that the numbers depend on.
    """

    format: int = FORMAT
    plan: RunPlan
    server: str
    strategy_via: str = Field(validation_alias=AliasChoices("strategy_via", "door"))  # "door" until version 0.1.0
    files: dict[str, str]
    images: str
    ids: str
    prompts: str
    answers: str
    versions: dict[str, str]

    @classmethod
    def create(
        cls,
        plan: RunPlan,
        task: BenchmarkTask,
        questions: list[BenchmarkQuestion],
        answers: Iterable[StoredAnswer],
        server: str,
        strategy_via: str,
    ) -> Manifest:
        """Hash the inputs and the scored answers of a run."""
        folder = plan.data_folder
        return cls(
            plan=plan,
            server=server,
            strategy_via=strategy_via,
            files={
                str(file.relative_to(folder)) if file.is_relative_to(folder) else file.name: hash_file(file)
                for file in task.list_source_files()
            },
            images=hash_json(sorted({f"{each.image.name} {each.image_hash}" for each in questions if each.image})),
            ids=hash_json([question.id for question in questions]),
            prompts=hash_json([question.prompt for question in questions]),
            answers=hash_json(sorted({f"{answer.key} {answer.text}" for answer in answers})),
            versions=collect_package_versions(),
        )

    def list_changes(self, other: Manifest) -> list[str]:
        """List the inputs that differ from another manifest, without versions."""
        changes = [
            f"the file {name}"
            for name in sorted(self.files.keys() | other.files.keys())
            if self.files.get(name) != other.files.get(name)
        ]
        return changes + [
            f"the {name}"
            for name in ("images", "ids", "prompts", "answers")
            if getattr(self, name) != getattr(other, name)
        ]


def collect_package_versions(
    packages: Iterable[str] = ("numpy", "scipy", "statsmodels", "nltk", "spacy", "en_core_web_lg", "onlyseen"),
) -> dict[str, str]:
    """Return the versions of Python and of the installed packages among `packages`."""
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a run.

    Args:
        folder: The folder of the run.

    Returns:
        The manifest.

    Raises:
        InputError: The folder has no manifest, or its manifest cannot be parsed.
    """
    file = folder / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError:
        raise InputError("no such file. Is this the folder of a finished run?", file) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"not a manifest: {first['msg']}", file, None, ".".join(map(str, first["loc"]))) from None


def check_format(manifest: Manifest, folder: Path) -> None:
    """Check that this program can read the format of a run.

    Args:
        manifest: The manifest of the run.
        folder: The folder of the run.

    Raises:
        RunError: The run has another format.
    """
    if manifest.format != FORMAT:
        raise RunError(f"{folder} has format {manifest.format}. This program reads format {FORMAT}.")
