"""`eval merge`: merge the shards of a run. The result equals that of a run on one machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eval.core.answer_store import AnswerStore, describe_unreadable, load_answers
from eval.core.results import Results
from eval.errors import RunError
from eval.runs.manifest import Manifest, read_manifest
from eval.runs.plan import Shard
from eval.workflows.run_directory import RunDirectory


def merge_shards(shards: Sequence[Path], out: Path, data: str | None = None, *, warn: Callable[[str], None]) -> Results:
    """Merge shards into a new folder and score it.

    Args:
        shards: Folders of all shards.
        out: Folder of the merged run.
        data: Data folder on this machine, if it differs.
        warn: Called with a message for each shard that has lines which are no answers.

    Returns:
        The results.

    Raises:
        RunError: `out` is one of the shards. Shards of different runs and missing shards raise it as well.
    """
    if out.resolve() in {shard.resolve() for shard in shards}:
        raise RunError(f"--out {out} is one of the shards. Choose another folder.")
    manifests = [read_manifest(shard) for shard in shards]
    _check_shards(shards, manifests)
    directory = RunDirectory(out)
    directory.check_task(manifests[0].plan.task)
    with AnswerStore(directory.answers_file) as store:
        for file in [RunDirectory(shard).answers_file for shard in shards]:
            stored = load_answers(file)
            if stored.unreadable:
                warn(describe_unreadable(file, stored.unreadable))
            for answer in stored.by_key.values():
                store.add(answer)
    _merge_verdicts(shards, directory)
    first = manifests[0]
    plan = first.plan.model_copy(update={"shard": Shard(), **({"data": data} if data else {})})
    task = plan.load_task()
    return directory.finalize(plan, task, plan.select_questions(task), first.server, first.strategy_via)


def _merge_verdicts(shards: Sequence[Path], directory: RunDirectory) -> None:
    files = [RunDirectory(shard).verdicts_file for shard in shards]
    for file in filter(Path.is_file, files):
        with AnswerStore(directory.verdicts_file) as store:
            for verdict in load_answers(file).by_key.values():
                store.add(verdict)


def _check_shards(shards: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    first = manifests[0]
    for shard, manifest in zip(shards, manifests, strict=True):
        if not first.plan.differs_only_in_shard(manifest.plan):
            raise RunError(f"{shard} belongs to another run than {shards[0]}: their plans differ.")
        if first.files != manifest.files:
            raise RunError(f"{shard} was made from other files than {shards[0]}.")
    numbers = sorted(manifest.plan.shard.number for manifest in manifests)
    expected = list(range(1, first.plan.shard.of + 1))
    if numbers != expected:
        raise RunError(f"The shards {numbers} are given. A run of {len(expected)} shards has {expected}.")
