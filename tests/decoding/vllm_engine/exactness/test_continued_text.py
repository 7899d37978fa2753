"""Answers that continue a text of the client are those of the transformers engine."""

from __future__ import annotations

from typing import Any

import pytest

from decoding.errors import BadRequest, Unsupported
from decoding.outputs import Answer
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.requests import GenerateRequest, SamplingParams
from decoding.text.grammar import build_choice_grammar
from tests.decoding.hf_engine.harness import build_stack, run_strategies
from tests.decoding.vllm_engine.scenes import get_token_ids, load_prompts

(PROMPT,) = load_prompts(1)
LENGTH = 20


async def continue_text(engine: Any, names: str, text: str, **sampling: Any) -> Answer:
    async with StrategyRunner(build_stack(names), engine) as runner:
        request = GenerateRequest(PROMPT, SamplingParams(**{"max_tokens": LENGTH, **sampling}), continued_text=text)
        return await collect_answer(runner.stream(await runner.resolve(request)))


@pytest.mark.parametrize(
    ("names", "sampling"),
    [
        ("plain", {}),
        ("plain", {"presence_penalty": 0.5}),
        ("vcd", {}),
        ("vdgd", {}),
        ("pai", {}),
        ("describe+vhr", {}),
    ],
)
async def test_continued_answer_equals_the_uninterrupted_one(
    names: str, sampling: dict[str, Any], hf_engine: Any, roomy_engine: Any
) -> None:
    whole, _ = await run_strategies(roomy_engine, names, PROMPT, SamplingParams(max_tokens=LENGTH, **sampling))
    text = "".join(token.text for token in whole.tokens[:6])
    for engine in (roomy_engine, hf_engine):
        rest = await continue_text(engine, names, text, **{"max_tokens": LENGTH - 6, **sampling})
        assert get_token_ids(rest) == get_token_ids(whole)[6:]
        assert text + rest.text == whole.text
        assert rest.finish.reason == whole.finish.reason
        assert rest.finish.usage.prompt_tokens == whole.finish.usage.prompt_tokens + 6
        assert rest.finish.usage.completion_tokens == len(rest.tokens)


@pytest.mark.parametrize("names", ["plain", "pai"])
async def test_limits_stops_and_formats(names: str, hf_engine: Any, roomy_engine: Any) -> None:
    text, ids = "The image shows a", hf_engine.encoder.encode_continued_text("The image shows a")
    short = await continue_text(hf_engine, names, text, max_tokens=2)
    stopped = await continue_text(roomy_engine, names, text, max_tokens=2, stop=("image",))
    assert get_token_ids(stopped) == get_token_ids(short)
    if names == "pai":  # its tokens are forced
        with pytest.raises(Unsupported, match="stop_token_ids"):
            await continue_text(roomy_engine, names, text, stop_token_ids=ids[:3])
    else:
        stopped = await continue_text(roomy_engine, names, text, max_tokens=2, stop_token_ids=ids[:3])
        assert get_token_ids(stopped) == get_token_ids(short)
    long = await continue_text(roomy_engine, names, text, max_tokens=30, min_tokens=30)
    assert len(long.tokens) == 30
    grammar = build_choice_grammar(["two cats", "two dogs", "a cat"])
    assert "two" + (await continue_text(roomy_engine, names, "two", grammar=grammar)).text in ("two cats", "two dogs")
    with pytest.raises(BadRequest, match="cannot begin"):
        await continue_text(roomy_engine, names, "three", grammar=grammar)
    with pytest.raises(BadRequest, match="context is"):
        await continue_text(roomy_engine, names, "a " * 4000)
