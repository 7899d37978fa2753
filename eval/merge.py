"""`eval merge`: the shards of a run, joined to what one machine would have made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eval import manifest
from eval.errors import RunError
from eval.folder import Folder
from eval.manifest import Manifest
from eval.plan import Shard
from eval.results import Results
from eval.store import Store, read


def merge(shards: Sequence[Path], out: Path, data: str | None = None) -> Results:
    """Raises: RunError: they are not all the shards of one run."""
    if out.resolve() in {shard.resolve() for shard in shards}:
        raise RunError(f"--out {out} is one of the shards: choose another folder.")
    manifests = [manifest.read(shard) for shard in shards]
    refuse_strangers(shards, manifests)
    folder = Folder(out)
    with Store(folder.answers) as store:
        for shard in shards:
            for answer in read(Folder(shard).answers):
                store.add(answer)
    first = manifests[0]
    plan = first.plan.model_copy(update={"shard": Shard(), **({"data": data} if data else {})})
    task = plan.make_task()
    return folder.conclude(plan, task, plan.questions(task), first.server, first.door)


def refuse_strangers(shards: Sequence[Path], manifests: Sequence[Manifest]) -> None:
    first = manifests[0]
    for shard, each in zip(shards, manifests, strict=True):
        if not first.plan.same_but_for_the_shard(each.plan):
            raise RunError(f"{shard} is of another run than {shards[0]}: their plans differ.")
        if first.files != each.files:
            raise RunError(f"{shard} was made from other files than {shards[0]}.")
    numbers = sorted(each.plan.shard.number for each in manifests)
    wanted = list(range(1, first.plan.shard.of + 1))
    if numbers != wanted:
        raise RunError(f"Shards {numbers} are given; a run of {len(wanted)} shards has {wanted}.")
