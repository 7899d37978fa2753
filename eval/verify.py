"""`eval verify`: is a run what it says? Scores the stored answers again, and compares every number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from eval import manifest
from eval.evaluation import evaluate
from eval.folder import Folder
from eval.manifest import Manifest, versions
from eval.results import Results
from eval.store import stored

ANY: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)


def verify(path: Path, data: str | None = None) -> list[str]:
    """What differs; nothing if the run is as it says. `data` is where its data lie now.

    Raises: EvaluationError: it cannot be scored again.
    """
    folder = Folder(path)
    written = manifest.read(path)
    manifest.refuse_other_format(written, path)
    plan = written.plan.model_copy(update={"data": data}) if data else written.plan
    task = plan.make_task()
    questions = plan.questions(task)
    results, sheet = evaluate(plan, task, questions, stored(folder.answers))
    now = Manifest.of(plan, task, questions, sheet, written.server, written.door)
    found = [f"{what} changed" for what in written.differences(now)]
    before = ANY.validate_json(folder.results.read_bytes())
    after = ANY.validate_json(Results.model_dump_json(results))
    numbers = [f"{place}: {old} in results.json, {new} now" for place, old, new in unequal(before, after)]
    if (
        numbers
        and not found
        and (moved := [name for name, version in written.versions.items() if versions().get(name) != version])
    ):
        found.append(f"other versions of {', '.join(moved)} than when it was written")
    return found + numbers


def unequal(before: JsonValue, after: JsonValue, place: str = "") -> Iterator[tuple[str, JsonValue, JsonValue]]:
    if isinstance(before, dict) and isinstance(after, dict):
        for key in before.keys() | after.keys():
            yield from unequal(before.get(key), after.get(key), f"{place}.{key}" if place else key)
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from unequal(old, new, f"{place}[{index}]")
    elif before != after:
        yield place, before, after
