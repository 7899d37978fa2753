"""What ZoomEye shows a model of a picture: the tree of its parts, and how each family is asked about them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from decoding.ask import Answer, Ask, Picture, Prompt
from decoding.pictures import Box, cropped, framed, squared
from decoding.strategies.cues import with_article

EXISTS = "Is there {cue} in the {view}? Answer Yes or No."
LATENT = (
    "According to your common sense knowledge and the content of the image, "
    "is it possible to find {cue} in the image by zooming in? Answer Yes or No."
)
ANSWERABLE = "Could you answer the question `{}` based on the available visual information? Answer Yes or No."
FOUND = 0.6  # existence from which a part holds one of the things of which all are wanted


@dataclass(frozen=True, slots=True)
class Budget:
    """How a family of models is asked, and how sure it must be."""

    side: int  # of the vision tower's input: what fits into it is not cut further
    upper: float  # answering confidence with which the search ends
    lower: float  # below it nothing is taken
    drops: tuple[float, ...]  # of the confidence that ends the search, each time the visits are used up
    base: float  # weight of existence, as against latency, at the root
    whole: bool  # shows the whole picture with a frame in it beside the crop


FAMILIES: Mapping[str, Budget] = {
    "llava-1.5": Budget(336, 0.6, 0.0, (0.1, 0.1, 0.2), 0.2, whole=False),
    "llava-anyres": Budget(384, 0.6, 0.0, (0.1, 0.1, 0.2), 0.6, whole=True),
    "internvl": Budget(448, 0.2, -0.2, (0.1, 0.1, 0.2), 0.6, whole=True),
    "qwen2.5-vl": Budget(448, 0.95, 0.0, (0.05, 0.1, 0.2), 0.6, whole=True),
}


class Eye:
    """What the model is shown of one picture, and the tree of its parts."""

    def __init__(self, prompt: Prompt, picture: Picture, budget: Budget, side: int, most: int) -> None:
        self.prompt = prompt
        self.picture = picture
        self.budget = budget
        self.side = side
        self.root = Box.whole(picture)
        self.colour = "blue" if "red rectangle" in prompt.question.lower() else "red"
        self.depth, box = 0, self.root
        while self.depth < most and max(box.size) >= side:
            self.depth, box = self.depth + 1, box.quartered()[-1]

    def parts(self, box: Box, depth: int) -> tuple[Box, ...]:
        return box.quartered() if depth < self.depth and max(box.size) >= self.side else ()

    def nodes(self, levels: int) -> list[Box]:
        """The whole picture and its parts, `levels` deep."""
        found = layer = [self.root]
        for depth in range(levels):
            layer = [part for box in layer for part in self.parts(box, depth)]
            found = found + layer
        return found

    def holders(self, exists: Mapping[Box, float], box: Box, levels: int, depth: int = 0) -> list[Box]:
        """`box`, or what is below it: the parts with c_e enough, and no less than that of their own parts."""
        parts = self.parts(box, depth) if depth < levels else ()
        if exists[box] >= max([FOUND, *(exists[part] for part in parts)]):
            return [box]
        return [found for part in parts for found in self.holders(exists, part, levels, depth + 1)]

    def priority(self, depth: int, existence: float, latent: float) -> float:
        """w c_e + (1 - w) c_l: the deeper, the more what is seen counts."""
        weight = self.budget.base + (1 - self.budget.base) * (depth / self.depth) ** 2
        return weight * existence + (1 - weight) * latent

    def at(self, box: Box) -> Prompt:
        """The prompt with what is to be seen of this part in the picture's place."""
        if box == self.root:
            return self.prompt
        if not self.budget.whole:
            return self.prompt.map_pictures(lambda _: squared(cropped(self.picture, box), self.side))
        crop = cropped(self.picture, box.grown(1.2, within=self.root))
        return self.prompt.map_pictures(lambda _: (framed(self.picture, box, self.colour), crop))

    def exists(self, cue: str) -> str:
        return EXISTS.format(cue=with_article(cue), view="zoomed-in view" if self.budget.whole else "image")

    def latent(self, cue: str) -> str:
        return LATENT.format(cue=with_article(cue))

    def answerable(self, question: str) -> str:
        return ANSWERABLE.format(question)

    def ask(self, box: Box, question: str) -> Ask:
        return Ask(self.at(box).with_question(question), choices=("Yes", "No"))


def confidence(answer: Answer) -> float:
    """2 (p(Yes) - 1/2), -1 ... 1; 0 where a strategy inside has ruled out both."""
    yes, no = answer.choices["Yes"], answer.choices["No"]
    if yes == no:
        return 0.0
    return math.tanh((yes - no) / 2)
