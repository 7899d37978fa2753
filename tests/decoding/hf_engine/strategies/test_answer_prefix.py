"""Answers that continue from a prefix, and ruled-out phrases, against recomputation."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from decoding.errors import Overloaded
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, SamplingParams
from tests.decoding.hf_engine.harness import exact_length, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference
from tests.decoding.hf_engine.strategies.test_exactness import STACKS

LENGTH = 24
PROMPT = make_prompt(seed=1)


async def continue_answer(
    engine: HFEngine,
    names: str,
    prefix: tuple[int | str, ...],
    sampling: SamplingParams,
    ruled_out: tuple[str, ...] = (),
) -> Answer:
    async with StrategyRunner(STACKS[names], engine) as runner:
        outcome = await runner.resolve(GenerateRequest(PROMPT, sampling))
        assert isinstance(outcome, GenerateRequest)
        return await collect_answer(runner.stream(outcome.replace(answer_prefix=prefix, ruled_out=ruled_out)))


def list_ids(answer: Answer) -> list[int]:
    return [token.id for token in answer.tokens]


@pytest.mark.parametrize("names", STACKS)
async def test_continued_answer_equals_the_uninterrupted_one(names: str, either: HFEngine) -> None:
    whole, _ = await run_strategies(either, STACKS[names], PROMPT, exact_length(LENGTH))
    for length in (1, 9):
        rest = await continue_answer(either, names, tuple(list_ids(whole)[:length]), exact_length(LENGTH))
        assert list_ids(rest) == list_ids(whole)[length:]
        assert rest.text == whole.text[len(whole.text) - len(rest.text) :]
        assert rest.finish.usage.completion_tokens == LENGTH


@pytest.mark.parametrize("names", ["plain", "vcd", "vhr", "pai", "steer", "steer the answer", "vdgd+vcd"])
async def test_foreign_prefix_equals_recomputation(names: str, either: HFEngine, reference: Reference) -> None:
    prefix = (20, 31, 42, 23, 54)
    decoded = reference.decode(STACKS[names], PROMPT, LENGTH, prefix=prefix)
    assert list_ids(await continue_answer(either, names, prefix, exact_length(LENGTH))) == decoded.tokens[len(prefix) :]


@pytest.mark.parametrize("names", ["plain", "vcd", "deco+pai"])
async def test_ruled_out_phrases_equal_recomputation(names: str, either: HFEngine, reference: Reference) -> None:
    plain = reference.decode(STACKS[names], PROMPT, LENGTH)
    tokenizer = reference.processor.tokenizer
    words = [tokenizer.decode([token]).strip() for token in plain.tokens]
    phrases = tuple(dict.fromkeys(word for word in words if len(word) >= 3))[:3]
    assert phrases
    sequences = [sequence for phrase in phrases for sequence in either.model.encoder.encode_phrase(phrase)]
    decoded = reference.decode(STACKS[names], PROMPT, LENGTH, ruled_out=sequences)
    assert decoded.tokens != plain.tokens
    assert list_ids(await continue_answer(either, names, (), exact_length(LENGTH), phrases)) == decoded.tokens


async def test_text_is_encoded_behind_the_tokens_before_it(embedded: HFEngine) -> None:
    tokenizer = embedded.model.encoder.tokenizer
    whole = tokenizer("The image shows a dog.", add_special_tokens=False)["input_ids"]
    start = embedded.model.encoder.encode_answer_start((*whole[:-1], "."), ())
    assert list(start.ids) == whole


async def test_max_tokens_and_min_tokens_count_the_prefix(embedded: HFEngine) -> None:
    prefix = tuple(embedded.model.encoder.tokenizer("The image shows", add_special_tokens=False)["input_ids"])
    short = await continue_answer(embedded, "plain", prefix, SamplingParams(max_tokens=len(prefix) + 2))
    assert (len(list_ids(short)), short.finish.reason) == (2, "length")
    eos = embedded.model.eos_token_ids[0]
    short_enough = SamplingParams(max_tokens=40, min_tokens=len(prefix) + 5)
    assert eos not in list_ids(await continue_answer(embedded, "plain", prefix, short_enough))[:5]


async def test_stop_string_may_begin_in_the_prefix(embedded: HFEngine) -> None:
    whole = await continue_answer(embedded, "plain", (), SamplingParams(max_tokens=40))
    tokens = [token for token in whole.tokens if token.text]
    stop = tokens[3].text + tokens[4].text
    cut = await continue_answer(embedded, "plain", (), SamplingParams(max_tokens=40, stop=(stop,)))
    rest = await continue_answer(
        embedded, "plain", tuple(token.id for token in tokens[:4]), SamplingParams(max_tokens=40, stop=(stop,))
    )
    assert rest.finish.reason == cut.finish.reason == "stop"
    assert rest.text == ""


async def test_penalties_count_the_prefix(either: HFEngine) -> None:
    sampling = exact_length(LENGTH, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5)
    whole = await continue_answer(either, "plain", (), sampling)
    assert (
        list_ids(await continue_answer(either, "plain", tuple(list_ids(whole)[:10]), sampling)) == list_ids(whole)[10:]
    )


async def test_requests_with_prefixes_share_a_batch(either: HFEngine) -> None:
    whole = await continue_answer(either, "vcd", (), exact_length(LENGTH))
    prefixes = [tuple(list_ids(whole)[:length]) for length in (0, 3, 7, 12)]
    answers = await asyncio.gather(
        *(continue_answer(either, "vcd", prefix, exact_length(LENGTH)) for prefix in prefixes)
    )
    assert [list_ids(answer) for answer in answers] == [list_ids(whole)[len(prefix) :] for prefix in prefixes]


async def test_admitted_request_joins_a_full_queue(embedded: HFEngine) -> None:
    settings = embedded.settings
    embedded.settings = replace(settings, max_waiting=0)
    try:
        with pytest.raises(Overloaded):
            await collect_answer(embedded.generate(GenerateRequest(PROMPT, exact_length(2))))
        request = GenerateRequest(PROMPT, exact_length(2), bypasses_queue_limit=True)
        assert len((await collect_answer(embedded.generate(request))).tokens) == 2
    finally:
        embedded.settings = settings
