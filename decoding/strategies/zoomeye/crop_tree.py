"""Crop tree of ZoomEye, and the views and questions that judge its nodes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from decoding.image_ops import MAX_PADDED_SIDE, Box, crop, draw_frame, pad_to_square
from decoding.requests import Answer, GenerateRequest, ImageInput, Prompt
from decoding.strategies.zoomeye.cues import with_article

EXISTS = "Is there {cue} in the {view}? Answer Yes or No."
LATENT = (
    "According to your common sense knowledge and the content of the image, "
    "is it possible to find {cue} in the image by zooming in? Answer Yes or No."
)
ANSWERABLE = "Could you answer the question `{}` based on the available visual information? Answer Yes or No."
MAX_GROUP_PIXELS = 8_000_000  # pixels of boxes from which no more are judged at once
VIEW_SCALE = 1.2  # of a crop beside the whole image
MIN_EXISTENCE = 0.6  # c_e from which a part holds one of the objects of a type-2 cue


@dataclass(frozen=True, slots=True)
class FamilyThresholds:
    """Settings of the search for a family of models."""

    side: int  # input size of the vision tower, in pixels; smaller boxes are not cut
    upper: float  # answering confidence that ends the search at first
    lower: float  # lowest answering confidence that is accepted
    drops: tuple[float, ...]  # of the threshold, each time the visits are used up
    base: float  # weight of c_e at the root
    shows_whole: bool  # whether the view has the whole image with a frame beside the crop


FAMILIES: Mapping[str, FamilyThresholds] = {
    "llava-1.5": FamilyThresholds(336, 0.6, 0.0, (0.1, 0.1, 0.2), 0.2, shows_whole=False),
    "llava-anyres": FamilyThresholds(384, 0.6, 0.0, (0.1, 0.1, 0.2), 0.6, shows_whole=True),
    "internvl": FamilyThresholds(448, 0.2, -0.2, (0.1, 0.1, 0.2), 0.6, shows_whole=True),
    "qwen2.5-vl": FamilyThresholds(448, 0.95, 0.0, (0.05, 0.1, 0.2), 0.6, shows_whole=True),
}


class CropTree:
    """Tree of the crops of one image.

    Args:
        prompt: The prompt with the image and the question.
        image: The image.
        thresholds: Settings of the model's family.
        side: Size in pixels up to which a box is not cut.
        max_depth: Maximum levels below the whole image.
        widens: Whether the view of a small box has its surroundings in the image, and not grey.
        is_official: Whether a part that holds an object is compared with its whole subtree, as in the official code.
    """

    def __init__(
        self,
        prompt: Prompt,
        image: ImageInput,
        thresholds: FamilyThresholds,
        side: int,
        max_depth: int,
        *,
        widens: bool = False,
        is_official: bool = False,
    ) -> None:
        self.prompt = prompt
        self.image = image
        self.thresholds = thresholds
        self.side = side
        self.widens = widens
        self.is_official = is_official
        self.root = Box.from_image(image)
        self.color = "blue" if "red rectangle" in prompt.question.lower() else "red"
        self.depth, box = 0, self.root
        while self.depth < max_depth and max(box.size) >= side:
            self.depth, box = self.depth + 1, box.split()[-1]

    def list_parts(self, box: Box, depth: int) -> tuple[Box, ...]:
        """Return the children of a node."""
        return box.split() if depth < self.depth and max(box.size) >= self.side else ()

    def list_nodes(self, levels: int) -> list[Box]:
        """List the whole image and its parts down to a number of levels."""
        nodes = layer = [self.root]
        for depth in range(levels):
            layer = [part for box in layer for part in self.list_parts(box, depth)]
            nodes = nodes + layer
        return nodes

    def find_holders(self, existence: Mapping[Box, float], box: Box, levels: int, depth: int = 0) -> list[Box]:
        """Select, at or below `box`, the parts with enough c_e and no less than that of their own children.

        With `is_official`, no less than that of all parts below them.

        Returns:
            The parts.
        """
        parts = self.list_parts(box, depth) if depth < levels else ()
        below = self.list_below(box, levels, depth) if self.is_official else parts
        if existence[box] >= max([MIN_EXISTENCE, *(existence[part] for part in below)]):
            return [box]
        return [found for part in parts for found in self.find_holders(existence, part, levels, depth + 1)]

    def list_below(self, box: Box, levels: int, depth: int) -> list[Box]:
        """List the parts below a node down to a number of levels."""
        parts = self.list_parts(box, depth) if depth < levels else ()
        return [*parts, *(below for part in parts for below in self.list_below(part, levels, depth + 1))]

    def compute_priority(self, depth: int, existence: float, latent: float) -> float:
        """Compute w c_e + (1 - w) c_l of a node."""
        weight = self.thresholds.base + (1 - self.thresholds.base) * (depth / self.depth) ** 2
        return weight * existence + (1 - weight) * latent

    def build_view(self, *boxes: Box) -> Prompt:
        """Return the prompt with the view of the least box around some boxes in place of the image."""
        box, side = Box.around(boxes), self.side
        if box == self.root:
            return self.prompt
        if self.widens:
            factor, side = VIEW_SCALE if self.thresholds.shows_whole else 1.0, 1
            box = Box.around([each.widen(self.side, factor, within=self.root) for each in boxes])
        if not self.thresholds.shows_whole:
            return self.prompt.map_images(lambda _: pad_to_square(crop(self.image, box), side))
        shown = box if self.widens else box.expand(VIEW_SCALE, within=self.root)
        view = (draw_frame(self.image, box, self.color), crop(self.image, shown))
        return self.prompt.map_images(lambda _: view)

    def group(self, boxes: Sequence[Box]) -> Iterator[list[Box]]:
        """Split a list of boxes, so that the views of a part do not take much more memory than `MAX_GROUP_PIXELS`.

        Yields:
            At least one box.
        """
        group: list[Box] = []
        pixels = 0
        for box in boxes:
            group.append(box)
            pixels += max(math.prod(box.size), min(max(*box.size, self.side), MAX_PADDED_SIDE) ** 2)
            if pixels > MAX_GROUP_PIXELS:
                yield group
                group, pixels = [], 0
        if group:
            yield group

    def build_request(self, box: Box, question: str) -> GenerateRequest:
        """Build the request that judges a box by a yes/no question."""
        (request,) = self.build_requests(box, question)
        return request

    def build_requests(self, box: Box, *questions: str) -> list[GenerateRequest]:
        """Build the requests that judge a box by several questions. They share its view."""
        view = self.build_view(box)
        return [GenerateRequest(view.with_question(question), scored_texts=("Yes", "No")) for question in questions]

    def build_existence_question(self, cue: str) -> str:
        """Return the question of c_e."""
        view = "zoomed-in view" if self.thresholds.shows_whole else "image"
        return EXISTS.format(cue=with_article(cue), view=view)

    def build_latent_question(self, cue: str) -> str:
        """Return the question of c_l."""
        return LATENT.format(cue=with_article(cue))


def build_answerable_question(question: str) -> str:
    """Return the question of c_a."""
    return ANSWERABLE.format(question)


def compute_confidence(answer: Answer) -> float:
    """Compute 2 (p(Yes) - 1/2), in -1 ... 1; 0 where an inner strategy has ruled out both."""
    yes, no = answer.text_logprobs["Yes"], answer.text_logprobs["No"]
    if yes == no:
        return 0.0
    return math.tanh((yes - no) / 2)
