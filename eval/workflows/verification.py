"""`eval verify`: score the stored answers of a run again and compare every number with results.json."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from pydantic import JsonValue, TypeAdapter, ValidationError

from eval.analysis.evaluation import evaluate
from eval.core.results import Results
from eval.errors import InputError
from eval.runs.manifest import Manifest, collect_package_versions
from eval.workflows.finished_run import FinishedRun

ANY_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


def verify_run(path: Path, data: str | None = None) -> list[str]:
    """Verify a run. A run that cannot be scored again raises `EvaluationError`.

    Args:
        path: Folder of the run.
        data: Current data folder, if it has moved.

    Returns:
        Changed inputs and changed numbers, empty if nothing has changed.
    """
    run = FinishedRun.load(path, data)
    manifest = run.manifest
    results, table = evaluate(run.plan, run.task, run.questions, run.stored)
    answers = chain.from_iterable(table.answers.values())
    current = Manifest.create(run.plan, run.task, run.questions, answers, manifest.server, manifest.strategy_via)
    inputs = [f"{name} changed" for name in manifest.list_changes(current)]
    stored = _read_results(run.directory.results_file)
    computed = ANY_JSON.validate_json(results.model_dump_json())
    numbers = [f"{place}: {old} in results.json, {new} now" for place, old, new in _iter_differences(stored, computed)]
    versions = collect_package_versions()
    changed_packages = [name for name, version in manifest.versions.items() if versions.get(name) != version]
    if numbers and not inputs and changed_packages:
        inputs.append(f"the run was written with other versions of {', '.join(changed_packages)}")
    return inputs + numbers


def _read_results(file: Path) -> JsonValue:
    """Read results.json with the keys of the current version, without defaults of keys that the file lacks."""
    try:
        return ANY_JSON.validate_json(
            Results.model_validate_json(file.read_bytes()).model_dump_json(exclude_unset=True)
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(f"not results: {first['msg']}", file, None, ".".join(map(str, first["loc"]))) from None


def _iter_differences(old: JsonValue, new: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue, JsonValue]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old:  # Results of an earlier version lack newer numbers.
            yield from _iter_differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (old_item, new_item) in enumerate(zip(old, new, strict=True)):
            yield from _iter_differences(old_item, new_item, f"{path}[{index}]")
    elif old != new:
        yield path, old, new
