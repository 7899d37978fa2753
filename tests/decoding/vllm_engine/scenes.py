"""Requests for comparing engines: held-out scenes of the embedded model, questions and strategies."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from PIL import Image

from decoding.engine import Engine
from decoding.outputs import Answer
from decoding.requests import ImageInput, Prompt
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies

IMAGES = Path(__file__).parents[3] / "embedded" / "scenes" / "images"
QUESTIONS = (
    "Please describe this image in detail.",
    "Is there a person in the image?",
    "What do you see?",
    "How many dogs are in the image?",
)
STACKS = {
    "plain": build_stack("plain"),
    "truncate": build_stack("truncate"),
    "sharpen": build_stack("sharpen"),
    "vcd": build_stack("vcd"),
    "lazy vcd": build_stack("vcd", vcd={"lazy": True}),
    "icd": build_stack("icd"),
    "m3id": build_stack("m3id"),
    "agla": build_stack("agla"),
    "agla+vcd": build_stack("agla+vcd"),
    "dola": build_stack("dola"),
    "dola, official distance": build_stack("dola", dola={"divergence": "official"}),
    "dola, late and raw": build_stack("dola", dola={"bucket": "high", "normed": False}),
    "deco": build_stack("deco"),
    "deco+vcd": build_stack("deco+vcd"),
    "pai": build_stack("pai"),
    "pai, strong": build_stack("pai", pai={"alpha": 2.0, "gamma": 1.0, "first_layer": 0}),
    "deco+pai": build_stack("deco+pai"),
    "avisc": build_stack("avisc"),
    "sid": build_stack("sid"),
    "sid, early": build_stack("sid", sid={"layer": 1, "kept": 0.4, "alpha": 2.0}),
    "paint": build_stack("paint"),
    "paint, sensitive": build_stack("paint", paint={"modulation": "sensitive", "alpha": 2.0, "first_layer": 0}),
    "hgai": build_stack("hgai"),
    "iat": build_stack("iat"),
    "adaiat": build_stack("adaiat"),
    "adaiat, strong": build_stack("adaiat", adaiat={"alpha": 20.0, "beta": 10.0, "first": 0.0, "last": 1.0}),
    "vaf": build_stack("vaf"),
    "vaf, strong": build_stack("vaf", vaf={"enhance": 2.0, "suppress": 0.5, "first": 0.0, "last": 1.0}),
    "spin": build_stack("spin"),
    "spin, strong": build_stack("spin", spin={"kept": 0.5, "suppress": 0.0}),
    "steer": build_stack("steer", steer={"strength": 0.3}),
    "steer the answer": build_stack("steer", steer={"positions": "answer", "normalize": True, "first": 0.5}),
    "steer a feed-forward": build_stack("steer", steer={"part": "feed_forward", "normalize": True, "strength": 0.3}),
    "steer an attention": build_stack("steer", steer={"part": "attention", "strength": -0.5, "last": 0.5}),
    "deco+steer+pai": build_stack("deco+steer+pai", steer={"strength": 0.3}),
    "fade": build_stack("fade", fade={"alpha": 1.0}),
    "vista": build_stack("vista"),
    "vcd+vista": build_stack("vcd+vista", vista={"strength": 0.5}),
    "vti": build_stack("vti", vti={"strength": 5.0}),
    "nolan": build_stack("nolan"),
    "ritual": build_stack("ritual"),
    "sira": build_stack("sira"),
    "damro": build_stack("damro"),
    "pai+sid": build_stack("pai+sid"),
    "avisc+sid": build_stack("avisc+sid"),
    "code": build_stack("code", code={"description_tokens": 12}),
    "describe": build_stack("describe"),
    "vdgd": build_stack("vdgd"),
    "vdgd+vcd": build_stack("vdgd+vcd"),
}


def load_prompts(count: int) -> list[Prompt]:
    """Return prompts with different images."""
    files = sorted(IMAGES.glob("*.png"))[:count]
    return [
        Prompt.from_text(question, ImageInput(Image.open(file).convert("RGB")))
        for file, question in zip(files, islice(cycle(QUESTIONS), count), strict=True)
    ]


async def generate_all(
    engine: Engine, requests: Sequence[tuple[Sequence[Strategy], Prompt]], tokens: int
) -> list[Answer]:
    """Generate all answers at the same time."""
    results = await asyncio.gather(
        *(run_strategies(engine, stack, prompt, exact_length(tokens)) for stack, prompt in requests)
    )
    return [each for each, _ in results]


def get_token_ids(answer: Answer) -> list[int]:
    """Return the ids of the tokens of an answer."""
    return [token.id for token in answer.tokens]


async def compute_first_logprobs(engine: Engine, stack: str | Sequence[Strategy], count: int) -> list[float]:
    """Return the log-probabilities of the first token's likeliest candidates, in the order of their ids."""
    answer, _ = await run_strategies(engine, stack, load_prompts(1)[0], exact_length(1, top_logprobs=count))
    (token,) = answer.tokens
    return [each.logprob for each in sorted(token.top, key=lambda each: each.id)]
