"""ZoomEye: search the image, as a tree of ever smaller crops, for the objects of the question, and answer on them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import chain, repeat
from typing import Annotated, Any, Literal

from pydantic import Field

from decoding.image_ops import Box
from decoding.requests import Answer, GenerateRequest
from decoding.strategies.zoomeye.crop_tree import FAMILIES, CropTree, build_answerable_question, compute_confidence
from decoding.strategies.zoomeye.cues import find_cues, is_all_cue, singularize
from decoding.strategies.zoomeye.official_search import search_as_official
from decoding.strategy import Effect, Program, Strategy

ALL_CUE_DEPTH = 2  # to which a cue of type 2 is searched for

Search = Generator[Effect, Any, list[Box]]


class ZoomEye(Strategy):
    """Answer on the crop that a best-first search has found.

    The image is cut into four, each part again, until it fits the vision tower. Answers to yes/no questions judge a
    node, with one forward pass each: c = 2 (p(Yes) - 1/2) with p over Yes and No alone. c_e: is the cue in it; c_l:
    could zooming in show it; c_a: could the question be answered from it. The node with the largest w c_e + (1 - w) c_l
    comes next, with w = b + (1 - b) (d/D)^2 at depth d of D. The search ends when c_a reaches the family's threshold,
    which drops when 3 D nodes were visited and after every two more. A cue of type 1 needs one object and is searched
    for in this way. A cue of type 2 ("all dogs") takes every part, down to depth 2, with c_e >= 0.6 and no less than
    its children's. The answer sees the least box around the parts that were found: alone (`llava-1.5`), or beside the
    whole image with a frame around the box.

    An image that is not cut, because it fits the tower or `depth` is 0, is answered as it is. So is a question that
    names no object, or whose objects are not found.

    Source: Shen et al., EMNLP 2025, arXiv:2411.16044.

    Deviations from the official code:
    - The search ends elsewhere in 57 of 387 random searches. The code stops when its queue is empty; this lowers the
      threshold to the family's lowest. With several cues, the code takes the deepest node and this the surest one,
      which differ in 8 of 387. For cues of type 2, the code compares c_e with the whole subtree and this with direct
      children only, which differ in 22 of 400 random trees. `search` "official" does as the code in all of this.
    - The view of a small part: the code widens it with its real surroundings. This pads it with grey, which fills 32 to
      71 % of the view. `view` "surroundings" does as the code. It leaves out the layout of the code for two distant
      parts, which stand side by side there, and the lines of the frame inside the crop.
    - The children's c_e and c_l run in one batch. Yes counts with and without a space before it.
    - A question whether an object exists names its cue. For others the model is prompted with six examples, the image
      before them. A reply of another form names nothing. Pronouns come from a word list, not from spaCy.
    - Prompts have other words.
    """

    name = "zoomeye"
    paper = "arXiv:2411.16044"
    official_code = "om-ai-lab/ZoomEye, licence not checked"
    neutral = {"depth": 0}

    family: Annotated[
        Literal["llava-1.5", "llava-anyres", "internvl", "qwen2.5-vl"],
        Field(description="Model family whose thresholds, crop size and view apply."),
    ] = "llava-1.5"
    side: Annotated[
        int | None,
        Field(ge=8, le=8192, description="Size in pixels up to which a part is not cut, instead of the family's."),
    ] = None
    depth: Annotated[int, Field(ge=0, le=5, description="Maximum levels below the whole image; 0 does not search.")] = 5
    visits: Annotated[int, Field(ge=1, le=100, description="Nodes per level, after which the threshold drops.")] = 3
    search: Annotated[
        Literal["persistent", "official"],
        Field(description="Lower the threshold when no node is left to visit, or end the search as the official code."),
    ] = "persistent"
    view: Annotated[
        Literal["padded", "surroundings"],
        Field(description="Fill the view of a small part with grey, or with its surroundings as the official code."),
    ] = "padded"
    cues: Annotated[
        str | None, Field(min_length=1, max_length=4096, description="Objects to look for, separated by commas.")
    ] = None

    @classmethod
    def incompatible_with(cls, outer: type[Strategy]) -> str | None:
        if (
            "update_state" in outer.list_hooks()
            and {"head_scales", "edit_attention_scores", "gate_heads", "steer"} & outer.list_hooks()
        ):
            return f"its measurements of the whole image would act on the crop that {cls.name} finds"
        return None

    def run(self, request: GenerateRequest) -> Program:
        (image,) = request.prompt.require_images(self.name, most=1)
        thresholds = FAMILIES[self.family]
        side, is_official = self.side or thresholds.side, self.search == "official"
        widens = self.view == "surroundings"
        tree = CropTree(request.prompt, image, thresholds, side, self.depth, widens=widens, is_official=is_official)
        if tree.depth == 0:
            return request
        cues = yield from find_cues(request.prompt, self.cues)
        is_thorough = len(cues) > 1 or any(map(is_all_cue, cues))
        goals = [
            f"What is the appearance of the {singularize(cue)}?" if is_thorough else request.prompt.question
            for cue in cues
        ]
        single = [goal for cue, goal in zip(cues, goals, strict=True) if not is_all_cue(cue)]
        if thresholds.shows_whole and len(cues) > 1 and single:
            answers: list[Answer] = yield [
                tree.build_request(tree.root, build_answerable_question(goal)) for goal in single
            ]
            if max(map(compute_confidence, answers)) >= thresholds.upper:
                return request
        found: list[Box] = []
        for cue, goal in zip(cues, goals, strict=True):
            if is_all_cue(cue):
                found += yield from self.find_all(tree, singularize(cue))
            elif is_official:
                priorities = partial(self.compute_priorities, tree, cue)
                visits = self.visits * tree.depth
                found += yield from search_as_official(tree, goal, visits, priorities, is_thorough=is_thorough)
            else:
                found += yield from self.find_one(tree, cue, goal, is_thorough)
        return request.replace(prompt=tree.build_view(*found)) if found else request

    def find_one(self, tree: CropTree, cue: str, goal: str, is_thorough: bool) -> Search:
        """Find the node that answers `goal`, if there is one. A thorough search reaches a leaf before it ends."""
        thresholds, visits = tree.thresholds, self.visits * tree.depth
        threshold, drops = thresholds.upper, chain(thresholds.drops, repeat(thresholds.drops[-1]))
        queue = [(0.0, 0, tree.root)]  # negative priority, depth, node
        confidences: dict[Box, float] = {}
        may_end = not is_thorough
        while threshold >= thresholds.lower:
            visited = heappop(queue) if queue and visits > 0 else None
            if visited is not None:
                _, depth, box = visited
                visits, parts = visits - 1, tree.list_parts(box, depth)
                may_end = may_end or not parts
                answer: Answer = yield tree.build_request(box, build_answerable_question(goal))
                if box != tree.root or thresholds.shows_whole or not is_thorough:
                    confidences[box] = compute_confidence(answer)
            else:
                threshold, visits, may_end = round(threshold - next(drops), 6), 2 if queue else 0, True
            best = max(confidences, key=confidences.__getitem__, default=None)
            if best is not None and may_end and confidences[best] >= max(threshold, thresholds.lower):
                return [best]
            if visited is not None:
                priorities = yield from self.compute_priorities(tree, cue, parts, depth + 1)
                for priority, part in zip(priorities, parts, strict=True):
                    heappush(queue, (-priority, depth + 1, part))
        return []

    def compute_priorities(
        self, tree: CropTree, cue: str, parts: Sequence[Box], depth: int
    ) -> Generator[Effect, Any, list[float]]:
        """Compute w c_e + (1 - w) c_l of every part. The weight of c_e grows with depth."""
        questions = (tree.build_existence_question(cue), tree.build_latent_question(cue))
        values: list[float] = []
        for group in tree.group(parts):
            answers: list[Answer] = yield [
                request for part in group for request in tree.build_requests(part, *questions)
            ]
            values += map(compute_confidence, answers)
        return [tree.compute_priority(depth, *pair) for pair in zip(values[::2], values[1::2], strict=True)]

    def find_all(self, tree: CropTree, cue: str) -> Search:
        """Find every part that holds one of the objects."""
        nodes = tree.list_nodes(ALL_CUE_DEPTH)
        existence: dict[Box, float] = {}
        for group in tree.group(nodes):
            answers: list[Answer] = yield [tree.build_request(box, tree.build_existence_question(cue)) for box in group]
            existence |= zip(group, map(compute_confidence, answers), strict=True)
        return tree.find_holders(existence, tree.root, ALL_CUE_DEPTH)
