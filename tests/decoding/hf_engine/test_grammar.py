"""Answers follow a JSON Schema under every strategy."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.requests import GenerateRequest, SamplingParams
from decoding.sampling_params import Grammar
from decoding.strategy import Strategy
from decoding.text import grammar_check, grammar_mask
from decoding.text.grammar import InvalidSchema, build_grammar
from decoding.text.grammar_mask import GrammarMask
from tests.decoding.hf_engine.harness import FakeMatcher, build_stack, generate, make_prompt, run_strategies
from tests.decoding.hf_engine.reference import Reference, apply_rule

COUNTED: dict[str, Any] = {
    "type": "object",
    "properties": {"object": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["object", "count"],
    "additionalProperties": False,
}
ANSWERS = [f'{{"object": "{thing}", "count": {count}}}' for thing in ("cat", "dog") for count in range(100)]


def with_grammar(schema: dict[str, Any] = COUNTED, **sampling: Any) -> SamplingParams:
    return SamplingParams(**{"max_tokens": 64, "top_logprobs": 0, "grammar": build_grammar(schema)} | sampling)


@pytest.mark.parametrize("names", ["plain", "truncate", "vcd", "agla", "vhr", "vdgd", "agla+vhr"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_every_strategy_follows_the_grammar(names: str, temperature: float, engine: HFEngine) -> None:
    answer, _ = await run_strategies(engine, names, make_prompt(), with_grammar(temperature=temperature, seed=3))
    assert answer.text in ANSWERS
    assert answer.finish.reason == "stop"


@pytest.mark.parametrize("names", ["plain", "vcd", "agla"])
async def test_greedy_answer_is_the_likeliest_that_fits(names: str, engine: HFEngine, tiny: Path) -> None:
    """Compare with a search through all tokens of the vocabulary.

    The schema forces no text: that would be spelled in the tokenizer's own tokens, not in the likeliest ones.
    """
    answer, _ = await run_strategies(
        engine, names, make_prompt(1), with_grammar({"type": "string", "pattern": "^[a-z ]{4,10}$"})
    )
    assert [token.id for token in answer.tokens] == search_all_tokens(build_stack(names), tiny)


def search_all_tokens(strategies: Sequence[Strategy], folder: Path) -> list[int]:
    reference, tokenizer = Reference(folder, FakeMatcher().relevance), AutoTokenizer.from_pretrained(folder)
    prompt, tokens = make_prompt(1), list[int]()
    pieces = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    special = set(tokenizer.all_special_ids)
    read = {"main": reference.encode(prompt)}
    for strategy in strategies:
        if strategy.name == "vcd":
            read["vcd"] = reference.add_noise(read["main"], strategy)  # type: ignore[arg-type]
        if strategy.name == "agla":
            read["agla"] = reference.encode(prompt.map_images(reference.mask_irrelevant(prompt.question)))
    while not tokens or tokens[-1] != tokenizer.eos_token_id:
        text = tokenizer.decode(tokens)
        fits = [
            token for token, piece in pieces.items()
            if token not in special and re.fullmatch('"[a-z ]{0,10}|"[a-z ]{4,10}"', text + piece)
        ] or [tokenizer.eos_token_id]  # fmt: skip
        branches = {name: reference.logits(branch, tokens, {}) for name, branch in read.items()}
        z = branches["main"].new_full(branches["main"].shape, -float("inf"))
        z[fits] = branches["main"][fits]
        scores = z
        for strategy in strategies:
            scores = apply_rule(strategy, scores, z, branches, {}, [])
        tokens.append(int(scores.argmax()))
    return tokens


async def test_grammar_does_not_bind_other_requests(engine: HFEngine) -> None:
    free = SamplingParams(max_tokens=20, ignore_eos=True)
    alone = await generate(engine, make_prompt(2), free)
    among, bound = await asyncio.gather(
        generate(engine, make_prompt(2), free), generate(engine, make_prompt(2), with_grammar())
    )
    assert among.text == alone.text
    assert bound.text in ANSWERS


async def test_grounding_ignores_the_grammar(engine: HFEngine) -> None:
    """Grounding is that of the model, not of the tokens that the grammar allows."""
    answer, _ = await run_strategies(engine, "plain", make_prompt(), with_grammar(), grounding=True)
    grounding = [token.grounding for token in answer.tokens if token.finish is None]
    assert all(score is not None for score in grounding)
    assert any(abs(score or 0) > 1e-3 for score in grounding)
    assert json.loads(answer.text)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"type": "string", "minLength": 5, "maxLength": 4}])
async def test_unsatisfiable_schema_is_rejected(schema: dict[str, Any], engine: HFEngine) -> None:
    with pytest.raises(BadRequest, match="cannot be enforced"):
        await generate(engine, make_prompt(), with_grammar(schema))
    assert (await generate(engine, make_prompt(), SamplingParams(max_tokens=2))).tokens


async def test_grammar_is_compiled_once_for_all_its_requests(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []

    def compile_grammar(tokenizer: Any, text: str) -> Any:
        compiled.append(text)
        return grammar_check.compile_grammar(tokenizer, text)

    monkeypatch.setattr(grammar_mask, "compile_grammar", compile_grammar)
    sampling = with_grammar(temperature=1.5)
    grammar = sampling.grammar
    assert grammar is not None
    await engine.compile_grammar(grammar)
    choices = [replace(sampling, seed=seed) for seed in range(4)]
    answers = await asyncio.gather(*(generate(engine, make_prompt(), choice) for choice in choices))
    assert {answer.text for answer in answers} <= set(ANSWERS)
    assert len({answer.text for answer in answers}) > 1
    assert compiled == [grammar.text]
    await generate(engine, make_prompt(), with_grammar())  # an equal grammar of another request
    assert compiled == [grammar.text] * 2


@pytest.mark.parametrize("fails", [False, True])
async def test_compiled_grammar_is_freed_with_its_requests(
    fails: bool, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception in a cycle would keep the memory until the next garbage collection."""

    def fail(*_: Any) -> None:
        raise InvalidSchema("it is too complicated")

    if fails:
        monkeypatch.setattr(GrammarMask, "accept_token", fail)
    gc.collect()
    gc.disable()
    try:
        with suppress(BadRequest):
            await generate(engine, make_prompt(), with_grammar())
            assert not fails
        async with asyncio.timeout(5):
            while len(engine._grammars._first_masks):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.01)
    finally:
        gc.enable()


async def test_prompts_do_not_wait_for_a_grammar(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()
    monkeypatch.setattr(engine._grammars, "compile", lambda _: is_over.wait(60))
    compiling = asyncio.create_task(engine.compile_grammar(Grammar("{}")))
    try:
        assert (await generate(engine, make_prompt(), SamplingParams(max_tokens=2))).tokens
        assert not compiling.done()
    finally:
        is_over.set()
        await compiling


async def test_too_complicated_grammar_fails_only_its_request(
    engine: HFEngine, captured_logs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept_token = GrammarMask.accept_token

    def fail_if_broken(mask: GrammarMask, token: int) -> None:
        accept_token(mask, token)
        if mask is broken:
            raise InvalidSchema("it is too complicated")

    async def generate_broken() -> None:
        nonlocal broken
        async for _ in engine.generate(GenerateRequest(make_prompt(), with_grammar())):
            broken = next(request.grammar_mask for request in engine.worker.batch.requests if request.grammar_mask)

    broken: GrammarMask | None = None
    monkeypatch.setattr(GrammarMask, "accept_token", fail_if_broken)
    free = asyncio.create_task(generate(engine, make_prompt(), SamplingParams(max_tokens=20, ignore_eos=True)))
    with pytest.raises(BadRequest, match="too complicated"):
        await generate_broken()
    assert len((await free).tokens) == 20
