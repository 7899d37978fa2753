"""ZoomEye: search the picture, as a tree of ever smaller crops, for what the question is about; then answer."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from heapq import heappop, heappush
from itertools import chain, repeat
from typing import Annotated, Any, Literal

from pydantic import Field

from decoding.ask import Answer, Ask
from decoding.pictures import Box
from decoding.strategies.cues import means_all, single, wanted
from decoding.strategies.eye import FAMILIES, Eye, confidence
from decoding.strategy import Effect, Program, Strategy

LEVELS = 2  # down to which all of them are looked for

Search = Generator[Effect, Any, list[Box]]


class ZoomEye(Strategy):
    """Answer on the part of the picture that a best-first search over its crops has found.

    The picture is cut into four, each part again, until it fits the vision tower. A node is judged by the answers to
    yes/no questions, one forward pass each: c = 2 (p(Yes) - 1/2) with p over Yes and No alone. c_e: is there a <cue> in
    it; c_l: could zooming in show one; c_a: could the question be answered from it. The node with the largest
    w c_e + (1 - w) c_l comes next, w = b + (1 - b) (d/D)^2 at depth d of D, until c_a reaches the family's threshold,
    which drops when 3 D nodes were visited and after every two more. A cue of type 1 wants one thing and is searched
    for like that; one of type 2 ("all dogs") takes every part, down to depth 2, with c_e >= 0.6 and no less than its
    children's. The answer sees the least box around what was found: alone (`llava-1.5`), or beside the whole picture
    with a frame around it. Shen et al., EMNLP 2025, arXiv:2411.16044.

    A picture that is not cut, because it fits the tower or `depth` is 0, is answered as it is; so is a question that
    names nothing to look for, or whose things are not found.

    Deviations from the official code:
    - The children's c_e and c_l are asked in one batch. Yes counts with and without a space before it.
    - A question whether something is there names its cue; for others the model is asked, with six examples, the picture
      before them. A reply of another form names nothing. Pronouns are told by a list of words, not with spaCy.
    - Prompts are worded anew. Where the code's threshold drops thrice, it goes on by the last drop to the lowest.
    """

    name = "zoomeye"
    paper = "arXiv:2411.16044"

    family: Annotated[
        Literal["llava-1.5", "llava-anyres", "internvl", "qwen2.5-vl"],
        Field(description="Whose thresholds, crop size and view to use."),
    ] = "llava-1.5"
    side: Annotated[
        int | None, Field(ge=8, le=8192, description="Pixels up to which a part is not cut, instead of the family's.")
    ] = None
    depth: Annotated[int, Field(ge=0, le=5, description="Most levels below the whole picture; 0 does not search.")] = 5
    visits: Annotated[int, Field(ge=1, le=100, description="Nodes a level, before less certainty will do.")] = 3
    cues: Annotated[
        str | None, Field(min_length=1, max_length=4096, description="What to look for, with commas between.")
    ] = None

    @classmethod
    def refuses(cls, outer: type[Strategy]) -> str | None:
        if "digest" in outer.hooks() and {"heads", "attend"} & outer.hooks():
            return f"what it has measured on the whole picture would act on the part that {cls.name} finds"
        return None

    def run(self, ask: Ask) -> Program:
        (picture,) = ask.prompt.require_pictures(self.name, most=1)
        budget = FAMILIES[self.family]
        eye = Eye(ask.prompt, picture, budget, self.side or budget.side, self.depth)
        if eye.depth == 0:
            return ask
        cues = yield from wanted(ask.prompt, self.cues)
        thorough = len(cues) > 1 or any(map(means_all, cues))
        looks = [f"What is the appearance of the {single(cue)}?" if thorough else ask.prompt.question for cue in cues]
        if budget.whole and len(cues) > 1:
            seen: list[Answer] = yield [eye.ask(eye.root, eye.answerable(look)) for look in looks]
            if max(map(confidence, seen)) >= budget.upper:
                return ask
        found: list[Box] = []
        for cue, look in zip(cues, looks, strict=True):
            search = self.all_of(eye, single(cue)) if means_all(cue) else self.one_of(eye, cue, look, thorough)
            found += yield from search
        return ask.but(prompt=eye.at(Box.around(found))) if found else ask

    def one_of(self, eye: Eye, cue: str, look: str, thorough: bool) -> Search:
        """The node that answers `look`, if any. A thorough search goes down to a leaf before it ends."""
        budget, visits = eye.budget, self.visits * eye.depth
        threshold, drops = budget.upper, chain(budget.drops, repeat(budget.drops[-1]))
        queue = [(0.0, 0, eye.root)]  # minus the priority, depth, node
        sure: dict[Box, float] = {}
        may_end = not thorough
        while threshold >= budget.lower:
            visited = heappop(queue) if queue and visits > 0 else None
            if visited is not None:
                _, depth, box = visited
                visits, parts = visits - 1, eye.parts(box, depth)
                may_end = may_end or not parts
                judged: Answer = yield eye.ask(box, eye.answerable(look))
                if box != eye.root or budget.whole or not thorough:
                    sure[box] = confidence(judged)
            else:
                threshold, visits, may_end = round(threshold - next(drops), 6), 2 if queue else 0, True
            best = max(sure, key=sure.__getitem__, default=None)
            if best is not None and may_end and sure[best] >= max(threshold, budget.lower):
                return [best]
            if visited is not None:
                priorities = yield from self.priorities(eye, cue, parts, depth + 1)
                for priority, part in zip(priorities, parts, strict=True):
                    heappush(queue, (-priority, depth + 1, part))
        return []

    def priorities(self, eye: Eye, cue: str, parts: Sequence[Box], depth: int) -> Generator[Effect, Any, list[float]]:
        """w c_e + (1 - w) c_l of every part: the smaller it is, the more what is seen in it counts."""
        questions = (eye.exists(cue), eye.latent(cue))
        answers: list[Answer] = yield [eye.ask(part, question) for part in parts for question in questions]
        sure = list(map(confidence, answers))
        return [eye.priority(depth, *pair) for pair in zip(sure[::2], sure[1::2], strict=True)]

    def all_of(self, eye: Eye, cue: str) -> Search:
        """Every part in which one of the things is."""
        nodes = eye.nodes(LEVELS)
        answers: list[Answer] = yield [eye.ask(box, eye.exists(cue)) for box in nodes]
        return eye.holders(dict(zip(nodes, map(confidence, answers), strict=True)), eye.root, LEVELS)
