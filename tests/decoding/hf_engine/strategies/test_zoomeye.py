"""ZoomEye against a separate search over recomputed confidences, one question at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from PIL import Image

from decoding.hf_engine.engine import HFEngine
from decoding.requests import ImageInput, Prompt
from decoding.strategies.zoomeye import ZoomEye
from tests.decoding.hf_engine.harness import exact_length, make_image, run_strategies
from tests.decoding.hf_engine.reference import Reference

SIDE, LENGTH = 16, 8
QUESTION = "Is there a cat in the image?"
Node = tuple[int, int, int, int]  # x, y, width, height


@dataclass
class NaiveSearch:
    """The `llava-1.5` search for one cue. The image is 56 x 40 and is cut twice."""

    reference: Reference
    image: ImageInput
    passes: int = 0
    state: dict[tuple[Node, str], float] = field(default_factory=dict)

    def crop(self, node: Node) -> ImageInput:
        x, y, width, height = node
        pixels = np.array(self.image.visible)
        if node == (0, 0, *self.image.visible.size):
            return self.image
        side = max(width, height, SIDE)
        canvas = np.empty((side, side, 3), np.uint8)
        canvas[:] = 122, 116, 104
        top, left = (side - height) // 2, (side - width) // 2
        canvas[top : top + height, left : left + width] = pixels[y : y + height, x : x + width]
        return ImageInput(Image.fromarray(canvas))

    def compute_confidence(self, node: Node, text: str) -> float:
        if (node, text) not in self.state:
            self.passes += 1
            z = self.reference.logits(self.reference.encode(Prompt.from_text(text, self.crop(node))), [], {})
            yes, no = (math.fsum(z[id_].exp().item() for id_ in self.answer_ids(word)) for word in ("Yes", "No"))
            self.state[node, text] = 2 * (yes / (yes + no) - 0.5)
        return self.state[node, text]

    def answer_ids(self, word: str) -> set[int]:
        words = self.reference.processor.tokenizer
        both = (words(text, add_special_tokens=False)["input_ids"] for text in (word, f" {word}"))
        return {next(id_ for id_ in ids if words.decode([id_]).strip()) for ids in both}

    def search(self) -> Node | None:
        answering = f"Could you answer the question `{QUESTION}` based on the available visual information? "
        answering += "Answer Yes or No."
        existing = "Is there a cat in the image? Answer Yes or No."
        latent = "According to your common sense knowledge and the content of the image, is it possible to find a cat "
        latent += "in the image by zooming in? Answer Yes or No."
        waiting: list[tuple[float, int, Node]] = [(0.0, 0, (0, 0, *self.image.visible.size))]
        visited: list[tuple[float, Node]] = []
        for threshold, visits in ((0.6, 6), (0.5, 2), (0.4, 2), (0.2, 2), (0.0, 2)):
            for confidence, node in visited:
                if confidence >= threshold and confidence == max(visited)[0]:
                    return node
            for _ in range(visits):
                if not waiting:
                    break
                waiting.sort(key=lambda entry: entry[0])
                _, depth, node = waiting.pop()
                visited.append((self.compute_confidence(node, answering), node))
                if visited[-1][0] >= threshold:
                    return node
                x, y, width, height = node
                if depth == 2:
                    continue
                for part in (
                    (x, y, width // 2, height // 2),
                    (x + width // 2, y, width - width // 2, height // 2),
                    (x, y + height // 2, width // 2, height - height // 2),
                    (x + width // 2, y + height // 2, width - width // 2, height - height // 2),
                ):
                    w = 0.2 + 0.8 * ((depth + 1) / 2) ** 2
                    priority = w * self.compute_confidence(part, existing) + (1 - w) * self.compute_confidence(
                        part, latent
                    )
                    waiting.append((priority, depth + 1, part))
        return None


@pytest.mark.parametrize("seed", range(4))
async def test_search_equals_recomputation(seed: int, either: HFEngine, reference: Reference) -> None:
    shown = make_image(seed)
    naive = NaiveSearch(reference, shown)
    node = naive.search()
    answer, prior_usage = await run_strategies(
        either, (ZoomEye(side=SIDE),), Prompt.from_text(QUESTION, shown), exact_length(LENGTH)
    )
    assert prior_usage.forward_passes == naive.passes
    view = shown if node is None else naive.crop(node)
    assert [token.id for token in answer.tokens] == reference.decode(
        (), Prompt.from_text(QUESTION, view), LENGTH
    ).tokens
