"""What the engines are asked: held-out scenes of the embedded model, and the strategies that decode the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from decoding.answer import Answer
from decoding.ask import Picture, Prompt
from decoding.engine import Engine
from decoding.strategy import Strategy
from tests.decoding.hf_engine.asking import answer, exactly, stack

IMAGES = Path(__file__).parents[3] / "embedded" / "scenes" / "images"
QUESTIONS = (
    "Please describe this image in detail.",
    "Is there a person in the image?",
    "What do you see?",
    "How many dogs are in the image?",
)
STACKS = {
    "plain": stack("plain"),
    "truncate": stack("truncate"),
    "sharpen": stack("sharpen"),
    "vcd": stack("vcd"),
    "icd": stack("icd"),
    "m3id": stack("m3id"),
    "agla": stack("agla"),
    "agla+vcd": stack("agla+vcd"),
    "code": stack("code", code={"description_tokens": 12}),
    "vdgd": stack("vdgd"),
    "vdgd+vcd": stack("vdgd+vcd"),
}


def prompts(count: int) -> list[Prompt]:
    files = sorted(IMAGES.glob("*.png"))[:count]
    return [
        Prompt.of(question, Picture(Image.open(file).convert("RGB")))
        for file, question in zip(files, islice(cycle(QUESTIONS), count), strict=True)
    ]


async def answers(engine: Engine, asked: Sequence[tuple[Sequence[Strategy], Prompt]], tokens: int) -> list[Answer]:
    """All at once."""
    said = await asyncio.gather(*(answer(engine, strategies, prompt, exactly(tokens)) for strategies, prompt in asked))
    return [one for one, _ in said]


def ids(answer: Answer) -> list[int]:
    return [token.id for token in answer.tokens]
