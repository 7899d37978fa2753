"""The end of an answer: end tokens, lengths and stop strings."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from tests.decoding.hf_engine.harness import (
    build_stack,
    exact_length,
    generate,
    make_image,
    make_prompt,
    run_strategies,
)

FILLER = "Is there a person? "


@pytest.fixture
def end_token(engine: HFEngine) -> Iterator[int]:
    """Make the fifth token of the model's answer its end token."""
    fifth = asyncio.run(generate(engine, make_prompt(), exact_length(5))).tokens[4].id
    end_tokens = (fifth, engine.model.vocab_size - 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine.model, "eos_token_ids", end_tokens)
        patched.setattr(engine.model, "eos_token_ids_on_device", torch.tensor(end_tokens))
        yield fifth


async def test_answer_ends_with_the_eos_token(engine: HFEngine, end_token: int) -> None:
    answer = await generate(engine, make_prompt(), SamplingParams(max_tokens=20))
    assert answer.finish.reason == "stop"
    assert answer.finish.usage.completion_tokens == len(answer.tokens) == 5
    assert answer.tokens[-1].id == end_token
    assert answer.tokens[-1].text == ""


async def test_ignore_eos_continues_after_the_eos_token(engine: HFEngine, end_token: int) -> None:
    answer = await generate(engine, make_prompt(), exact_length(20))
    assert (answer.finish.reason, len(answer.tokens)) == ("length", 20)
    assert end_token in [token.id for token in answer.tokens]


async def test_eos_token_is_masked_before_min_tokens(engine: HFEngine, end_token: int) -> None:
    answer = await generate(engine, make_prompt(), SamplingParams(max_tokens=20, min_tokens=8))
    assert end_token not in [token.id for token in answer.tokens[:8]]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_cut_before_min_tokens_keeps_an_allowed_token(
    temperature: float, engine: HFEngine, end_token: int
) -> None:
    """With beta 1 only the likeliest token is left, and the fifth would be the end token."""
    least = SamplingParams(max_tokens=20, min_tokens=12, temperature=temperature, top_logprobs=0)
    expected = await generate(engine, make_prompt(), replace(least, temperature=0.0))
    answer, _ = await run_strategies(engine, build_stack("truncate", truncate={"beta": 1.0}), make_prompt(), least)
    assert [token.id for token in answer.tokens] == [token.id for token in expected.tokens]
    assert [token.chosen.logprob for token in answer.tokens if token.chosen] == [0.0] * len(answer.tokens)


@pytest.mark.parametrize("length", [1, 2, 17])
async def test_max_tokens_limits_the_answer(length: int, engine: HFEngine) -> None:
    answer = await generate(engine, make_prompt(), exact_length(length))
    assert (answer.finish.reason, len(answer.tokens)) == ("length", length)


def make_filling_prompt(engine: HFEngine, left: int) -> Prompt:
    """Build a prompt that leaves room for `left` tokens, or a few more."""
    size = len(engine.model.encoder.encode(make_prompt(text=FILLER)))
    more = len(engine.model.encoder.encode(make_prompt(text=FILLER * 2))) - size
    return make_prompt(text=FILLER * (1 + (engine.model.max_model_len - left - size) // more))


@pytest.mark.parametrize("most", [None, 10_000])
async def test_answer_without_max_tokens_fills_the_context(most: int | None, engine: HFEngine) -> None:
    prompt = make_filling_prompt(engine, left=20)
    room = engine.model.max_model_len - len(engine.model.encoder.encode(prompt))
    answer = await generate(engine, prompt, SamplingParams(max_tokens=most, ignore_eos=True))
    assert (answer.finish.reason, len(answer.tokens)) == ("length", room)


async def test_the_longest_branch_limits_the_answer(engine: HFEngine) -> None:
    prompt = make_filling_prompt(engine, left=20)
    room = engine.model.max_model_len - len(engine.model.encoder.encode(prompt))
    request = GenerateRequest(make_prompt(), SamplingParams(ignore_eos=True), branches={"long/one": prompt})
    assert len((await collect_answer(engine.generate(request))).tokens) == room


async def test_prompt_that_fills_the_context_is_rejected(engine: HFEngine) -> None:
    with pytest.raises(BadRequest) as refused:
        await generate(engine, make_prompt(text=FILLER * 200), exact_length(1))
    assert refused.value.code == "context_length_exceeded"
    assert refused.value.param == "messages"


async def test_images_alone_can_exceed_the_context(engine: HFEngine) -> None:
    prompt = Prompt.from_text("?", *[make_image(0)] * 40)
    for answering in (
        generate(engine, prompt, exact_length(1)),
        engine.check(GenerateRequest(prompt, exact_length(1))),
    ):
        with pytest.raises(BadRequest) as refused:
            await answering
        assert refused.value.code == "context_length_exceeded"


async def test_stop_string_across_tokens_ends_the_answer(engine: HFEngine) -> None:
    full = await generate(engine, make_prompt(), exact_length(30))
    for at in (0, 5, len(full.text) // 2, len(full.text) - 4):
        stop = full.text[at : at + 4]
        answer = await generate(engine, make_prompt(), exact_length(30, stop=("never said", stop)))
        assert answer.text == full.text[: full.text.index(stop)]
        assert answer.finish.reason == "stop"
        assert answer.finish.usage.completion_tokens == len(answer.tokens) <= 30


async def test_held_text_comes_with_the_last_token(engine: HFEngine) -> None:
    full = await generate(engine, make_prompt(), exact_length(12))
    answer = await generate(engine, make_prompt(), exact_length(12, stop=(full.text[-2:] + "and more",)))
    assert answer.text == full.text
    assert answer.finish.reason == "length"


@pytest.mark.parametrize("names", ["some text", ""])
async def test_absent_stop_string_changes_nothing(names: str, engine: HFEngine) -> None:
    stop = (names,) if names else ()
    answer = await generate(engine, make_prompt(), SamplingParams(max_tokens=12, ignore_eos=True, stop=stop))
    assert answer.text == (await generate(engine, make_prompt(), exact_length(12))).text


async def test_stop_string_does_not_end_the_answer_before_min_tokens(engine: HFEngine) -> None:
    full = await generate(engine, make_prompt(), exact_length(30))
    early = next(token.text for token in full.tokens if token.text)
    answer = await generate(engine, make_prompt(), exact_length(30, stop=(early,), min_tokens=30))
    assert (answer.text, answer.finish.reason) == (full.text, "length")
