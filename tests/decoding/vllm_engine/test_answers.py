"""Log-probabilities, grounding, scored texts, stopping, grammars and penalties are those of the transformers engine."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from torch import Tensor

from decoding.errors import BadRequest, Overloaded, Unsupported
from decoding.outputs import Answer
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, Prompt, SamplingParams
from decoding.sampling_params import Grammar
from decoding.strategy import Step, Strategy
from decoding.text import grammar_check, grammar_mask
from decoding.text.grammar import (
    InvalidSchema,
    build_choice_grammar,
    build_grammar,
    build_lark_grammar,
    build_regex_grammar,
)
from decoding.text.grammar_mask import GrammarCompiler
from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.scenes import get_token_ids, load_prompts

(PROMPT,) = load_prompts(1)
SCHEMA = {
    "type": "object",
    "properties": {"object": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["object", "count"],
    "additionalProperties": False,
}


async def answer_on_both(
    hf_engine: Any, vllm_engine: Any, names: str, sampling: SamplingParams, **options: Any
) -> tuple[Answer, Answer]:
    return tuple(
        [(await run_strategies(engine, names, PROMPT, sampling, **options))[0] for engine in (hf_engine, vllm_engine)]
    )  # type: ignore[return-value]


def assert_same(actual: Answer, expected: Answer) -> None:
    assert get_token_ids(actual) == get_token_ids(expected)
    assert [token.text for token in actual.tokens] == [token.text for token in expected.tokens]
    assert [token.changed for token in actual.tokens] == [token.changed for token in expected.tokens]
    assert actual.finish.reason == expected.finish.reason


@pytest.mark.parametrize("names", ["plain", "vcd", "truncate"])
async def test_logprobs_are_those_after_the_strategies(names: str, hf_engine: Any, roomy_engine: Any) -> None:
    expected, actual = await answer_on_both(hf_engine, roomy_engine, names, exact_length(12, top_logprobs=4))
    assert_same(actual, expected)
    for token, other in zip(actual.tokens, expected.tokens, strict=True):
        assert token.chosen is not None
        assert other.chosen is not None
        assert (token.chosen.id, token.chosen.text, token.chosen.bytes) == (
            other.chosen.id,
            other.chosen.text,
            other.chosen.bytes,
        )
        assert token.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-3)
        possible = [each.id for each in other.top if each.logprob > float("-inf")]
        assert [each.id for each in token.top][: len(possible)] == possible
        assert [each.logprob for each in token.top] == pytest.approx([each.logprob for each in other.top], abs=1e-3)


@pytest.mark.parametrize("names", ["plain", "agla"])
async def test_grounding_equals_that_of_the_transformers_engine(names: str, hf_engine: Any, roomy_engine: Any) -> None:
    expected, actual = await answer_on_both(hf_engine, roomy_engine, names, exact_length(12), grounding=True)
    assert_same(actual, expected)
    assert [token.grounding for token in actual.tokens] == pytest.approx(
        [token.grounding for token in expected.tokens], abs=1e-3
    )


@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_choices_are_scored_in_one_forward_pass(names: str, hf_engine: Any, roomy_engine: Any) -> None:
    async def score_texts(engine: Any) -> Answer:
        request = GenerateRequest(PROMPT, SamplingParams(), scored_texts=("Yes", "No"))
        for strategy in reversed(build_stack(names)):
            request = strategy.prepare(request).with_strategy(strategy).replace(stack=(strategy, *request.stack))
        return await collect_answer(engine.generate(request))

    expected, actual = await score_texts(hf_engine), await score_texts(roomy_engine)
    assert dict(actual.text_logprobs) == pytest.approx(dict(expected.text_logprobs), abs=1e-3)
    assert actual.finish.usage.forward_passes == expected.finish.usage.forward_passes


@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_answer_ends_at_eos_before_a_stop_string_and_at_max_tokens(
    names: str, hf_engine: Any, roomy_engine: Any
) -> None:
    at_eos = await answer_on_both(hf_engine, roomy_engine, names, SamplingParams(max_tokens=200))
    assert_same(*at_eos)
    assert at_eos[1].finish.reason == "stop"
    word = at_eos[1].text.split()[6]
    assert_same(*await answer_on_both(hf_engine, roomy_engine, names, SamplingParams(max_tokens=200, stop=(word,))))
    at_max_tokens = await answer_on_both(hf_engine, roomy_engine, names, SamplingParams(max_tokens=5))
    assert_same(*at_max_tokens)
    assert at_max_tokens[1].finish.reason == "length"


@pytest.mark.parametrize("names", ["plain", "vcd", "agla+vcd", "vdgd"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_every_strategy_follows_a_grammar(
    names: str, temperature: float, hf_engine: Any, roomy_engine: Any
) -> None:
    sampling = SamplingParams(max_tokens=64, temperature=temperature, seed=3, grammar=build_grammar(SCHEMA))
    expected, actual = await answer_on_both(hf_engine, roomy_engine, names, sampling)
    assert actual.finish.reason == "stop"
    assert actual.text.startswith('{"object": "')
    if temperature == 0:
        assert_same(actual, expected)


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        (build_choice_grammar(["a cat", "a dog"]), {"a cat", "a dog"}),
        (build_regex_grammar("a (cat|dog)"), {"a cat", "a dog"}),
        (build_lark_grammar('start: "a " THING\nTHING: "cat" | "dog"'), {"a cat", "a dog"}),
    ],
    ids=["choice", "regex", "lark"],
)
async def test_other_grammars_act_on_both_engines(
    grammar: Grammar, texts: set[str], hf_engine: Any, roomy_engine: Any
) -> None:
    sampling = SamplingParams(max_tokens=40, grammar=grammar)
    expected, actual = await answer_on_both(hf_engine, roomy_engine, "vcd", sampling)
    assert actual.text in texts
    assert_same(actual, expected)


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.3}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"min_tokens": 30}]
)
async def test_penalties_act_after_the_strategies(penalty: dict[str, Any], hf_engine: Any, roomy_engine: Any) -> None:
    assert_same(*await answer_on_both(hf_engine, roomy_engine, "vcd", SamplingParams(max_tokens=40, **penalty)))


@pytest.mark.parametrize("names", ["plain", "truncate", "vcd"])
async def test_plausibility_cut_ignores_eos_before_min_tokens(names: str, hf_engine: Any, roomy_engine: Any) -> None:
    sampling = SamplingParams(max_tokens=60, min_tokens=50, top_logprobs=0)
    sharp = build_stack(names, **({} if names == "plain" else {names: {"beta": 1.0}}))
    expected, actual = [
        (await run_strategies(engine, sharp, PROMPT, sampling))[0] for engine in (hf_engine, roomy_engine)
    ]
    assert_same(actual, expected)
    assert len((await run_strategies(hf_engine, sharp, PROMPT, SamplingParams(max_tokens=50)))[0].tokens) < 50
    logprobs = [[token.chosen.logprob for token in each.tokens if token.chosen] for each in (actual, expected)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


class Unregistered(Strategy):
    """A strategy that no entry point names."""

    name = "unregistered"
    paper = "none"

    def logits(self, step: Step) -> Tensor:
        return -step.scores


@pytest.mark.parametrize("names", ["plain", "vcd"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("prefix", [(301, 275), (900, 17)], ids=["likely", "not among the likeliest"])
async def test_answer_begins_with_the_prefix_tokens(
    names: str, temperature: float, prefix: tuple[int, ...], hf_engine: Any, roomy_engine: Any
) -> None:
    sampling = exact_length(8, forced_token_ids=prefix, top_logprobs=2, temperature=temperature, seed=1)
    expected, actual = await answer_on_both(hf_engine, roomy_engine, names, sampling)
    assert get_token_ids(actual)[:2] == list(prefix)
    if temperature == 0:
        assert_same(actual, expected)
        logprobs = [[token.chosen.logprob for token in each.tokens if token.chosen] for each in (actual, expected)]
        assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-3)


async def test_grammar_is_compiled_once_outside_of_the_core(roomy_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself would compile it for each choice, in the event loop."""
    from vllm.v1.structured_output import backend_guidance

    compiled: list[str] = []

    def compile_grammar(tokenizer: Any, text: str) -> Any:
        compiled.append(text)
        return grammar_check.compile_grammar(tokenizer, text)

    monkeypatch.setattr(grammar_mask, "compile_grammar", compile_grammar)
    monkeypatch.setattr(backend_guidance, "validate_guidance_grammar", lambda *_, **__: compiled.append("again"))
    grammar = build_grammar(SCHEMA)
    await roomy_engine.compile_grammar(grammar)
    choices = [SamplingParams(max_tokens=64, temperature=1.0, seed=seed, grammar=grammar) for seed in range(3)]
    answers = await asyncio.gather(*(run_strategies(roomy_engine, "plain", PROMPT, choice) for choice in choices))
    for answer, _ in answers:
        assert json.loads(answer.text)["object"] in ("cat", "dog")
    assert compiled == [grammar.text]


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"type": "string", "minLength": 5, "maxLength": 4}])
async def test_schema_without_an_instance_is_refused(schema: dict[str, Any], roomy_engine: Any) -> None:
    with pytest.raises(BadRequest, match="cannot be enforced"):
        await run_strategies(roomy_engine, "vcd", PROMPT, SamplingParams(grammar=Grammar(json.dumps(schema))))
    assert (await run_strategies(roomy_engine, "vcd", PROMPT, exact_length(2)))[0].tokens


async def test_a_grammar_that_is_too_complicated_is_refused(hf_engine: Any, roomy_engine: Any) -> None:
    """llguidance fails at the first brace, because a thousand properties may follow."""
    properties = {f"p{number}": {"type": "string", "format": "uri"} for number in range(999)}
    grammar = build_grammar({"type": "object", "properties": properties})
    for engine in (hf_engine, roomy_engine):
        answer, _ = await run_strategies(engine, "plain", PROMPT, SamplingParams(max_tokens=1, grammar=grammar))
        assert (answer.text, answer.finish.reason) == ("{", "length")
        with pytest.raises(InvalidSchema):
            await run_strategies(engine, "plain", PROMPT, SamplingParams(max_tokens=4, grammar=grammar))


async def test_an_answer_that_ends_before_its_grammar_is_refused(
    roomy_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM allows the end token where llguidance reaches a limit."""
    sampling = SamplingParams(max_tokens=64, grammar=build_grammar(SCHEMA))
    answer, _ = await run_strategies(roomy_engine, "plain", PROMPT, sampling)
    assert answer.finish.reason == "stop"
    accepts = GrammarCompiler.accepts
    monkeypatch.setattr(GrammarCompiler, "accepts", lambda self, grammar, ids: accepts(self, grammar, ids[:-1]))
    with pytest.raises(InvalidSchema, match="too complicated"):
        await run_strategies(roomy_engine, "plain", PROMPT, sampling)


async def test_requests_without_room_for_their_state_are_refused_and_the_others_answered(
    roomy_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = await run_strategies(roomy_engine, "vdgd", PROMPT, exact_length(4))
    monkeypatch.setattr(roomy_engine._state_handles, "max_bytes", 5 * roomy_engine.checkpoint.vocab_size)
    actual = await asyncio.gather(
        *(run_strategies(roomy_engine, "vdgd", PROMPT, exact_length(4)) for _ in range(3)), return_exceptions=True
    )
    refused = [each for each in actual if isinstance(each, Overloaded)]
    assert [each.code for each in refused] == ["memory_full"] * 2
    assert [get_token_ids(each[0]) for each in actual if isinstance(each, tuple)] == [get_token_ids(alone)]
    again, _ = await run_strategies(roomy_engine, "vdgd", PROMPT, exact_length(4))
    assert get_token_ids(again) == get_token_ids(alone)


async def test_requests_that_the_engine_cannot_run_are_refused(roomy_engine: Any) -> None:
    with pytest.raises(Unsupported, match="not registered"):
        await run_strategies(roomy_engine, (Unregistered(),), PROMPT, exact_length(2))
    too_long = GenerateRequest(PROMPT, exact_length(1900), branches={f"toy/{n}": PROMPT for n in range(40)})
    too_wide = GenerateRequest(PROMPT, exact_length(2), branches={f"toy/{n}": PROMPT for n in range(64)})
    for answering in (collect_answer(roomy_engine.generate(too_long)), roomy_engine.check(too_long)):
        with pytest.raises(BadRequest, match="fit the engine's cache"):
            await answering
    for answering in (collect_answer(roomy_engine.generate(too_wide)), roomy_engine.check(too_wide)):
        with pytest.raises(Unsupported, match="rows"):
            await answering
    await roomy_engine.check(GenerateRequest(PROMPT, exact_length(2)))


async def test_search_with_many_requests_equals_the_transformers_engine(hf_engine: Any, roomy_engine: Any) -> None:
    prompt = Prompt.from_text("Is there a cup in the image?", *load_prompts(2)[1].images)
    (expected, expected_usage), (actual, usage) = [
        await run_strategies(engine, "zoomeye", prompt, SamplingParams(max_tokens=8))
        for engine in (hf_engine, roomy_engine)
    ]
    assert_same(actual, expected)
    assert usage.forward_passes == expected_usage.forward_passes > 10


async def test_votes_are_reproducible_with_a_seed(roomy_engine: Any) -> None:
    """The transformers engine samples from other random numbers, so that the votes are not compared with it."""
    prompt = Prompt.from_text("Is there a cup in the image?", *load_prompts(2)[1].images)
    votes = [
        (await run_strategies(roomy_engine, "mvp", prompt, SamplingParams(seed=4, top_logprobs=2)))[0] for _ in range(2)
    ]
    assert votes[0].text in ("Yes", "No")
    assert votes[0].tokens == votes[1].tokens
