"""A sample of the questions of a task that is spread over images.

Questions about one image are not independent, so the first 60 questions of POPE, on 10 images, have less information
than 60 questions on 60 images. The sample is balanced over the labels of every scope, and a larger sample contains a
smaller one.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.core.task import BenchmarkQuestion

SEED = 0


@dataclass(frozen=True)
class _Unit:
    """Questions that enter a sample together: one question, or all that are scored together.

    Attributes:
        indices: Indices of the questions.
        image: Name of the image.
        digest: A hash that orders the units about equally used images.
    """

    indices: tuple[int, ...]
    image: str
    digest: str


def sample_questions(questions: Sequence[BenchmarkQuestion], limit: int, seed: int = SEED) -> list[BenchmarkQuestion]:
    """Select questions of every scope, spread over its labels and over all images.

    Every scope and label gives one question in turn: of the images that the sample uses least, the question with the
    smallest hash of seed and id. Questions that are scored together enter together.

    Args:
        questions: The questions of a task.
        limit: Number of questions of every scope. A scope has more of them if its last ones are scored together, and
            fewer if the task has no more.
        seed: Seed of the hashes.

    Returns:
        The selected questions, in the order of the task.
    """
    strata = _build_strata(questions, seed)
    heaps = {key: [(0, unit.digest, unit.indices, unit) for unit in units] for key, units in strata.items()}
    for heap in heaps.values():
        heapq.heapify(heap)
    used: Counter[str] = Counter()
    selected: list[int] = []
    sizes: Counter[str] = Counter()
    while any(heap and sizes[scope] < limit for (scope, _), heap in heaps.items()):
        for (scope, _), heap in sorted(heaps.items()):
            if not heap:
                continue
            unit = _pop_least_used(heap, used)
            used[unit.image] += len(unit.indices)
            # A full scope still takes its turn, so that its questions do not depend on the limit of the others.
            if sizes[scope] < limit:
                selected.extend(unit.indices)
                sizes[scope] += len(unit.indices)
    return [questions[index] for index in sorted(selected)]


def _pop_least_used(heap: list[tuple[int, str, tuple[int, ...], _Unit]], used: Counter[str]) -> _Unit:
    """Remove the first unit of a least used image. Counts only grow, so an outdated one is corrected at the top."""
    while True:
        count, digest, indices, unit = heap[0]
        if used[unit.image] == count:
            heapq.heappop(heap)
            return unit
        heapq.heapreplace(heap, (used[unit.image], digest, indices, unit))


def _build_strata(questions: Iterable[BenchmarkQuestion], seed: int) -> dict[tuple[str, str], list[_Unit]]:
    """Group units by scope and labels."""
    members: defaultdict[tuple[str, str], list[tuple[int, BenchmarkQuestion]]] = defaultdict(list)
    for index, question in enumerate(questions):
        members[question.scope, question.group or question.id].append((index, question))
    strata: defaultdict[tuple[str, str], list[_Unit]] = defaultdict(list)
    for (scope, _), unit in members.items():
        first = unit[0][1]
        labels = " ".join(str(question.truth.get("label", "")) for _, question in unit)
        digest = hashlib.sha256(f"{seed}|{first.id}".encode()).hexdigest()
        strata[scope, labels].append(_Unit(tuple(index for index, _ in unit), first.cluster, digest))
    return strata
