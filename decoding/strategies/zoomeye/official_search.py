"""The search for one cue as ZoomEye's official code has it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

from decoding.image_ops import Box
from decoding.requests import Answer
from decoding.strategies.zoomeye.crop_tree import CropTree, build_answerable_question, compute_confidence
from decoding.strategy import Effect

MORE_VISITS = 2  # after each drop of the threshold
ComputePriorities = Callable[[Sequence[Box], int], Generator[Effect, Any, list[float]]]  # of parts at a depth


def search_as_official(
    tree: CropTree, goal: str, visits: int, compute_priorities: ComputePriorities, *, is_thorough: bool
) -> Generator[Effect, Any, list[Box]]:
    """Find the node that answers `goal`, if there is one.

    Args:
        tree: The tree.
        goal: The question that the node must answer.
        visits: Nodes after which the threshold drops for the first time.
        compute_priorities: Function of parts and their depth, which makes requests.
        is_thorough: Whether the search reaches a leaf before it ends.

    Yields:
        Requests for confidences. The reply is an answer, or a list of answers.

    Returns:
        The deepest node found. Empty when the queue or the threshold is used up first.
    """
    thresholds = tree.thresholds
    threshold, drops = thresholds.upper, list(thresholds.drops)
    queue = [(0.0, 0, tree.root)]  # priority, depth, node
    visited: list[tuple[float, int, Box]] = []  # answering confidence, depth, node
    found: list[tuple[float, int, Box]] = []
    has_reached_leaf = False
    while queue:
        _, depth, box = queue.pop(0)
        confidence = -1.0
        if box != tree.root or thresholds.shows_whole or not is_thorough:
            answer: Answer = yield tree.build_request(box, build_answerable_question(goal))
            confidence = compute_confidence(answer)
        visited.append((confidence, depth, box))
        if confidence >= threshold:
            found.append(visited[-1])
            if has_reached_leaf or not is_thorough:
                break
        elif len(visited) >= visits:
            threshold, visits = threshold - drops[0], visits + MORE_VISITS
            drops = drops[1:] or drops
            found += [each for each in visited if each[0] >= threshold and each not in found]
            found = sorted(found, key=lambda each: -each[0])[:1]
            if found or threshold < thresholds.lower:
                break
        parts = tree.list_parts(box, depth)
        if not parts:
            has_reached_leaf = True
            if is_thorough and found:
                break
        priorities = yield from compute_priorities(parts, depth + 1)
        queue += [(priority, depth + 1, part) for priority, part in zip(priorities, parts, strict=True)]
        queue.sort(key=lambda each: -each[0])
    return [box for _, _, box in sorted(found, key=lambda each: -each[1])[:1]]
