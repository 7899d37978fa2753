"""Where an answer ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from decoding.ask import Ask, Prompt, Sampling
from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.stack import collect
from tests.decoding.hf_engine.asking import answer, exactly, picture, prompt, say, stack

FILLER = "Is there a person? "


@pytest.fixture
def ending(engine: HFEngine) -> Iterator[int]:
    """The model ends its answers where it would have said its fifth token."""
    fifth = asyncio.run(say(engine, prompt(), exactly(5))).tokens[4].id
    before, engine.model.eos = engine.model.eos, torch.tensor([fifth, engine.model.vocab - 1])
    yield fifth
    engine.model.eos = before


async def test_an_answer_ends_with_the_models_end_token(engine: HFEngine, ending: int) -> None:
    said = await say(engine, prompt(), Sampling(max_tokens=20))
    assert said.end.reason == "stop"
    assert said.end.usage.completion_tokens == len(said.tokens) == 5
    assert said.tokens[-1].id == ending
    assert said.tokens[-1].text == ""


async def test_the_end_token_may_be_ignored(engine: HFEngine, ending: int) -> None:
    said = await say(engine, prompt(), exactly(20))
    assert (said.end.reason, len(said.tokens)) == ("length", 20)
    assert ending in [token.id for token in said.tokens]


async def test_the_end_token_is_not_said_before_the_least_length(engine: HFEngine, ending: int) -> None:
    said = await say(engine, prompt(), Sampling(max_tokens=20, min_tokens=8))
    assert ending not in [token.id for token in said.tokens[:8]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_a_cut_that_would_keep_the_end_alone_keeps_what_may_be_said(
    temperature: float, engine: HFEngine, ending: int
) -> None:
    """With beta 1 the likeliest token is all that is left, and the fifth would be the end."""
    least = Sampling(max_tokens=20, min_tokens=12, temperature=temperature, top_logprobs=0)
    expected = await say(engine, prompt(), replace(least, temperature=0.0))
    said, _ = await answer(engine, stack("truncate", truncate={"beta": 1.0}), prompt(), least)
    assert [token.id for token in said.tokens] == [token.id for token in expected.tokens]
    assert [token.chosen.logprob for token in said.tokens if token.chosen] == [0.0] * len(said.tokens)


@pytest.mark.parametrize("length", [1, 2, 17])
async def test_an_answer_is_no_longer_than_asked(length: int, engine: HFEngine) -> None:
    said = await say(engine, prompt(), exactly(length))
    assert (said.end.reason, len(said.tokens)) == ("length", length)


def filling(engine: HFEngine, left: int) -> Prompt:
    """A prompt that leaves room for so many tokens, or a few more."""
    size = len(engine.model.encoder.encode(prompt(text=FILLER)))
    more = len(engine.model.encoder.encode(prompt(text=FILLER * 2))) - size
    return prompt(text=FILLER * (1 + (engine.model.context - left - size) // more))


@pytest.mark.parametrize("most", [None, 10_000])
async def test_without_a_lower_limit_an_answer_fills_the_context(most: int | None, engine: HFEngine) -> None:
    asked = filling(engine, left=20)
    room = engine.model.context - len(engine.model.encoder.encode(asked))
    said = await say(engine, asked, Sampling(max_tokens=most, ignore_eos=True))
    assert (said.end.reason, len(said.tokens)) == ("length", room)


async def test_the_longest_branch_limits_the_answer(engine: HFEngine) -> None:
    asked = filling(engine, left=20)
    room = engine.model.context - len(engine.model.encoder.encode(asked))
    ask = Ask(prompt(), Sampling(ignore_eos=True), branches={"long/one": asked})
    assert len((await collect(engine.generate(ask))).tokens) == room


async def test_a_prompt_that_leaves_no_room_is_refused(engine: HFEngine) -> None:
    with pytest.raises(BadRequest) as refused:
        await say(engine, prompt(text=FILLER * 200), exactly(1))
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"


async def test_a_prompt_may_be_too_long_for_its_pictures_alone(engine: HFEngine) -> None:
    with pytest.raises(BadRequest) as refused:
        await say(engine, Prompt.of("?", *[picture(0)] * 40), exactly(1))
    assert refused.value.code == "context_length_exceeded"
