"""The options of ZoomEye that follow the official code, against a separate search over random confidences."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from decoding.image_ops import Box
from decoding.outputs import Answer, FinishInfo, Usage
from decoding.requests import ImageInput, Prompt
from decoding.strategies.zoomeye import ZoomEye
from decoding.strategies.zoomeye.crop_tree import FAMILIES, CropTree
from decoding.strategies.zoomeye.official_search import search_as_official
from tests.decoding.fakes import make_request, random_image

SIZES = ((64, 64), (90, 40), (33, 70), (160, 30))


class RandomTree(CropTree):
    """A tree whose requests are pairs of a box and a question, and whose confidences are random."""

    def __init__(self, seed: int, family: str) -> None:
        image = random_image(size=SIZES[seed % len(SIZES)])
        super().__init__(Prompt.from_text("Why?", image), image, FAMILIES[family], 16, 5, is_official=True)
        self.random = Random(seed)
        self.highest = (-0.5, 0.2, 0.7)[seed % 3]
        self.confidences: dict[tuple[Box, str], float] = {}

    def confidence(self, box: Box, question: str) -> float:
        kind = question.split()[0]
        return self.confidences.setdefault((box, kind), round(self.random.uniform(-0.9, self.highest), 6))

    def build_request(self, box: Box, question: str) -> Any:
        return box, question

    def build_requests(self, box: Box, *questions: str) -> list[Any]:
        return [(box, question) for question in questions]

    def reply(self, request: tuple[Box, str]) -> Answer:
        yes = (self.confidence(*request) + 1) / 2
        text_logprobs = {"Yes": math.log(yes), "No": math.log(1 - yes)}
        return Answer("", (), FinishInfo("stop", Usage(), text_logprobs=text_logprobs))

    def run(self, search: Any) -> list[Box]:
        """Run a search to its end."""
        sent: Any = None
        try:
            while True:
                effect = search.send(sent)
                sent = [*map(self.reply, effect)] if isinstance(effect, list) else self.reply(effect)
        except StopIteration as stop:
            return list(stop.value)


def search_naively(tree: RandomTree, *, is_thorough: bool) -> list[Box]:
    """Search one node after the other, with a list of nodes that is sorted anew each time."""

    def priority(box: Box, depth: int) -> float:
        exists, could = tree.confidence(box, "Is there"), tree.confidence(box, "According to")
        weight = tree.thresholds.base + (1 - tree.thresholds.base) / tree.depth**2 * depth**2
        return exists * weight + could * (1 - weight)

    nodes, popped, candidates = [(tree.root, 0)], [], []
    bound, limit, drop, saw_leaf = tree.thresholds.upper, 3 * tree.depth, 0, False
    sure: dict[Box, float] = {}
    while nodes:
        box, depth = nodes.pop(0)
        popped.append((box, depth))
        may_answer = depth > 0 or tree.thresholds.shows_whole or not is_thorough
        sure[box] = tree.confidence(box, "Could you") if may_answer else -1
        if may_answer and sure[box] >= bound:
            candidates.append((box, depth))
            if not is_thorough or saw_leaf:
                break
        elif len(popped) >= limit:
            bound -= tree.thresholds.drops[min(drop, 2)]
            drop, limit = drop + 1, limit + 2
            candidates += [each for each in popped if sure[each[0]] >= bound and each not in candidates]
            if candidates:
                candidates = [max(candidates, key=lambda each: sure[each[0]])]
                break
            if bound < tree.thresholds.lower:
                break
        children = box.split() if depth < tree.depth and max(box.size) >= 16 else ()
        if not children:
            saw_leaf = True
            if is_thorough and candidates:
                break
        nodes += [(child, depth + 1) for child in children]
        nodes.sort(key=lambda each: priority(*each), reverse=True)
    return [max(candidates, key=lambda each: each[1])[0]] if candidates else []


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl", "internvl"])
@pytest.mark.parametrize("is_thorough", [False, True])
def test_official_search_equals_a_separate_one(family: str, is_thorough: bool) -> None:
    outcomes, differences = set(), 0
    for seed in range(120):
        tree = RandomTree(seed, family)
        expected = search_naively(tree, is_thorough=is_thorough)
        strategy = ZoomEye()

        def compute_priorities(parts: Any, depth: int, tree: Any = tree, strategy: ZoomEye = strategy) -> Any:
            return strategy.compute_priorities(tree, "cat", parts, depth)

        search = search_as_official(tree, "Why?", 3 * tree.depth, compute_priorities, is_thorough=is_thorough)
        assert tree.run(search) == expected, seed
        outcomes.add(len(expected))
        differences += tree.run(strategy.find_one(tree, "cat", "Why?", is_thorough)) != expected
    assert outcomes == {0, 1}
    assert differences > 0 or family != "llava-1.5"  # the default search ends elsewhere in some


def test_official_type_2_compares_a_part_with_all_below_it() -> None:
    differences = 0
    for seed in range(300):
        tree = RandomTree(seed, "llava-1.5")
        levels: dict[Box, int] = {tree.root: 0}
        for _ in range(2):
            for box, depth in [*levels.items()]:
                levels |= dict.fromkeys(box.split() if depth < 2 and max(box.size) >= 16 else (), depth + 1)
        exists = {box: round(2 * tree.confidence(box, "Is there") - 0.2, 6) for box in levels}
        inside = lambda part, box: part != box and Box.around([part, box]) == box  # noqa: E731
        kept = [
            box for box in levels if exists[box] >= max([0.6, *(exists[part] for part in levels if inside(part, box))])
        ]
        found = tree.find_holders(exists, tree.root, 2)
        assert (Box.around(found) if found else None) == (Box.around(kept) if kept else None), seed
        tree.is_official = False
        differences += tree.find_holders(exists, tree.root, 2) != found
    assert differences > 0


def patch(box: Box, size: tuple[int, int], side: int, scale: float) -> tuple[int, int, int, int]:
    """Return the edges of a part with its surroundings: left, top, right and bottom."""
    edges = []
    for low, high, length in ((box.left, box.right, size[0]), (box.top, box.bottom, size[1])):
        wide = int(max(high - low, side) * scale)
        start = max(0, int(low + (high - low) / 2) - wide // 2)
        edges.append((start, min(start + wide, length)))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


@pytest.mark.parametrize("family", ["llava-1.5", "qwen2.5-vl"])
@pytest.mark.parametrize(
    "boxes", [[Box(0, 0, 8, 5)], [Box(40, 20, 47, 29)], [Box(56, 40, 64, 48)], [Box(0, 0, 4, 4), Box(20, 8, 60, 12)]]
)
def test_view_has_the_surroundings_of_small_parts(family: str, boxes: list[Box]) -> None:
    image = random_image(size=(64, 48))
    tree = CropTree(Prompt.from_text("Why?", image), image, FAMILIES[family], 16, 5, widens=True)
    pixels = np.asarray(image.visible)
    shown = tree.build_view(*boxes).images[-1].visible
    each = [patch(box, (64, 48), 16, 1.0 if family == "llava-1.5" else 1.2) for box in boxes]
    left, top, right, bottom = (
        f(edges) for f, edges in zip((min, min, max, max), zip(*each, strict=True), strict=True)
    )
    expected = pixels[top:bottom, left:right]
    if family == "llava-1.5":
        longest = max(expected.shape)
        square = np.full((longest, longest, 3), (122, 116, 104), np.uint8)
        y, x = (longest - expected.shape[0]) // 2, (longest - expected.shape[1]) // 2
        square[y : y + expected.shape[0], x : x + expected.shape[1]] = expected
        expected = square
    assert np.array_equal(np.asarray(shown), expected)


def test_options_reach_the_search() -> None:
    """The object is a white pixel. Its part is found, and the view has what is around it."""
    pixels = np.random.default_rng(0).integers(0, 200, (64, 64, 3), np.uint8)
    pixels[9, 50] = 255
    request = make_request("Is there a cat in the image?", ImageInput(Image.fromarray(pixels)))
    program = ZoomEye(side=16, search="official", view="surroundings").run(request)
    sent: Any = None
    try:
        while True:
            effect: Any = program.send(sent)
            replies = []
            for one in effect if isinstance(effect, list) else [effect]:
                seen = np.asarray(one.prompt.images[0].visible)
                sure = (seen == 255).all(-1).any() and (len(seen) <= 16 or "Could" not in one.prompt.question)
                yes = 0.95 if sure else 0.05
                texts = {"Yes": math.log(yes), "No": math.log(1 - yes)}
                replies.append(Answer("", (), FinishInfo("stop", Usage(), text_logprobs=texts)))
            sent = replies if isinstance(effect, list) else replies[0]
    except StopIteration as stop:
        (view,) = stop.value.prompt.images
    assert np.array_equal(np.asarray(view.visible), pixels[0:16, 48:64])
