"""Answers that continue a text of the client equal the uninterrupted ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from decoding.claims.claim_check import ClaimCheck
from decoding.errors import BadRequest, Unsupported
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from decoding.strategy import Strategy
from decoding.text.grammar import build_choice_grammar
from tests.decoding.hf_engine.harness import build_stack, make_prompt, run_strategies
from tests.decoding.hf_engine.strategies.test_exactness import STACKS

LENGTH = 24
PROMPT = make_prompt(seed=1)
# Each of them builds prompts, forces tokens or keeps a state in another way.
NAMES = ("plain", "vcd", "vhr", "describe", "vdgd", "pai", "sid", "iat, strong", "dola", "vdgd+agla+vhr", "lazy vcd")


async def continue_text(
    engine: HFEngine, stack: Sequence[Strategy], text: str, prompt: Prompt = PROMPT, **sampling: Any
) -> Answer:
    async with StrategyRunner(stack, engine) as runner:
        request = GenerateRequest(prompt, SamplingParams(**{"max_tokens": LENGTH, **sampling}), continued_text=text)
        return await collect_answer(runner.stream(await runner.resolve(request)))


def list_ids(answer: Answer) -> list[int]:
    return [token.id for token in answer.tokens]


def cut(answer: Answer, tokens: int) -> str:
    """Return the beginning of an answer."""
    return "".join(token.text for token in answer.tokens[:tokens])


@pytest.mark.parametrize("names", NAMES)
async def test_continued_answer_equals_the_uninterrupted_one(names: str, embedded: HFEngine) -> None:
    stack, penalty = STACKS[names], {"presence_penalty": 0.5, "frequency_penalty": 0.5} if names == "vcd" else {}
    whole, _ = await run_strategies(embedded, stack, PROMPT, SamplingParams(max_tokens=LENGTH, **penalty))
    for length in (1, 9):
        text = cut(whole, length)
        rest = await continue_text(embedded, stack, text, max_tokens=LENGTH - length, **penalty)
        assert list_ids(rest) == list_ids(whole)[length:]
        assert text + rest.text == whole.text
        usage, whole_usage = rest.finish.usage, whole.finish.usage
        assert usage.prompt_tokens == whole_usage.prompt_tokens + length
        assert usage.completion_tokens == whole_usage.completion_tokens - length


async def test_other_requests_of_a_strategy_do_not_continue_the_text(embedded: HFEngine) -> None:
    async def collect_prior_passes(text: str) -> int:
        async with StrategyRunner(build_stack("vdgd"), embedded) as runner:
            await runner.resolve(GenerateRequest(PROMPT, SamplingParams(max_tokens=4), continued_text=text))
            return runner.prior_usage.forward_passes

    assert await collect_prior_passes("") == await collect_prior_passes("The image shows")


@pytest.mark.parametrize("names", ["plain", "pai"])  # prefilled, and forced token by token
async def test_limits_and_stop_strings_leave_the_text_out(names: str, embedded: HFEngine) -> None:
    stack, text = STACKS[names], "The image shows a"
    short = await continue_text(embedded, stack, text, max_tokens=2)
    assert (len(short.tokens), short.finish.reason) == (2, "length")
    ids = embedded.model.encoder.encode_continued_text(text)
    stopped = await continue_text(embedded, stack, text, max_tokens=2, stop=("image", "a "), stop_token_ids=ids[:3])
    assert list_ids(stopped) == list_ids(short)
    eos = embedded.model.eos_token_ids[0]
    assert eos not in list_ids(await continue_text(embedded, stack, text, max_tokens=30, min_tokens=30))


@pytest.mark.parametrize("names", ["plain", "pai"])
async def test_format_includes_the_text(names: str, embedded: HFEngine) -> None:
    grammar = build_choice_grammar(["two cats", "two dogs", "a cat"])
    rest = await continue_text(embedded, STACKS[names], "two", grammar=grammar)
    assert "two" + rest.text in ("two cats", "two dogs")
    with pytest.raises(BadRequest, match="cannot begin") as failure:
        await continue_text(embedded, STACKS[names], "three", grammar=grammar)
    assert failure.value.param == "messages"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a <image> b", "reserves"), ("a " * 10_000_000, "longer than"), ("a " * 4000, "context is")],
    ids=["special token", "characters", "tokens"],
)
@pytest.mark.parametrize("names", ["plain", "pai"])
async def test_text_is_checked_as_the_prompt(names: str, text: str, message: str, embedded: HFEngine) -> None:
    with pytest.raises(BadRequest, match=message) as failure:
        await continue_text(embedded, STACKS[names], text)
    assert failure.value.param == "messages"


@pytest.mark.parametrize(
    "stack", [build_stack("verify"), (ClaimCheck(), *build_stack("plain"))], ids=["verify", "check"]
)
async def test_strategies_that_read_the_answer_refuse(stack: tuple[Strategy, ...], embedded: HFEngine) -> None:
    with pytest.raises(Unsupported, match="cannot continue one") as failure:
        await continue_text(embedded, stack, "The image shows")
    assert failure.value.param == "continue_final_message"


async def test_blank_of_the_chat_template_precedes_the_text(embedded: HFEngine) -> None:
    encoder = embedded.model.encoder
    text = encoder.render(PROMPT)  # the template has a blank between it and an answer
    prompt, whole = (encoder.tokenizer(each)["input_ids"] for each in (text, f"{text} The image shows a dog."))
    for answer in ("The image shows a dog.", " The image shows a dog."):
        assert list(encoder.encode_continued_text(answer)) == whole[len(prompt) :]
