"""Answers that keep to a JSON Schema, whatever the strategy."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from decoding.ask import Ask, Sampling
from decoding.errors import BadRequest
from decoding.grammar import grammar_of
from decoding.hf_engine.engine import HFEngine
from decoding.strategy import Strategy
from tests.decoding.hf_engine.asking import FakeMatcher, answer, prompt, say, stack
from tests.decoding.hf_engine.reference import Reference, mixed

COUNTED: dict[str, Any] = {
    "type": "object",
    "properties": {"object": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["object", "count"],
    "additionalProperties": False,
}
ANSWERS = [f'{{"object": "{thing}", "count": {count}}}' for thing in ("cat", "dog") for count in range(100)]


def held(schema: dict[str, Any] = COUNTED, **sampling: Any) -> Sampling:
    return Sampling(**{"max_tokens": 64, "top_logprobs": 0, "grammar": grammar_of(schema)} | sampling)


@pytest.mark.parametrize("names", ["plain", "truncate", "vcd", "agla", "vhr", "vdgd", "agla+vhr"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_every_strategy_keeps_to_it(names: str, temperature: float, engine: HFEngine) -> None:
    said, _ = await answer(engine, names, prompt(), held(temperature=temperature, seed=3))
    assert said.text in ANSWERS
    assert said.end.reason == "stop"


@pytest.mark.parametrize("names", ["plain", "vcd", "agla"])
async def test_the_likeliest_answer_of_those_that_fit(names: str, engine: HFEngine, tiny: Path) -> None:
    """Against a search through all tokens of the vocabulary.

    The schema forces no text: that would be spelled in the tokenizer's own tokens, not in the likeliest ones.
    """
    said, _ = await answer(engine, names, prompt(1), held({"type": "string", "pattern": "^[a-z ]{4,10}$"}))
    assert [token.id for token in said.tokens] == naive(stack(names), tiny)


def naive(strategies: Sequence[Strategy], folder: Path) -> list[int]:
    reference, tokenizer = Reference(folder, FakeMatcher().relevance), AutoTokenizer.from_pretrained(folder)
    asked, said = prompt(1), list[int]()
    pieces = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    special = set(tokenizer.all_special_ids)
    read = {"main": reference.read(asked)}
    for strategy in strategies:
        if strategy.name == "vcd":
            read["vcd"] = reference.noisy(read["main"], strategy)  # type: ignore[arg-type]
        if strategy.name == "agla":
            read["agla"] = reference.read(asked.map_pictures(reference.mask(asked.question)))
    while not said or said[-1] != tokenizer.eos_token_id:
        text = tokenizer.decode(said)
        fits = [
            token for token, piece in pieces.items()
            if token not in special and re.fullmatch('"[a-z ]{0,10}|"[a-z ]{4,10}"', text + piece)
        ] or [tokenizer.eos_token_id]  # fmt: skip
        branches = {name: reference.logits(branch, said, {}) for name, branch in read.items()}
        z = branches["main"].new_full(branches["main"].shape, -float("inf"))
        z[fits] = branches["main"][fits]
        scores = z
        for strategy in strategies:
            scores = mixed(strategy, scores, z, branches, {}, [])
        said.append(int(scores.argmax()))
    return said


async def test_others_in_the_batch_are_free(engine: HFEngine) -> None:
    free = Sampling(max_tokens=20, ignore_eos=True)
    alone = await say(engine, prompt(2), free)
    among, bound = await asyncio.gather(say(engine, prompt(2), free), say(engine, prompt(2), held()))
    assert among.text == alone.text
    assert bound.text in ANSWERS


async def test_grounding_is_the_models_own(engine: HFEngine) -> None:
    """Not of what the grammar leaves: a token that is forced may have come from nowhere."""
    said, _ = await answer(engine, "plain", prompt(), held(), grounding=True)
    grounding = [token.grounding for token in said.tokens if token.end is None]
    assert all(score is not None for score in grounding)
    assert any(abs(score or 0) > 1e-3 for score in grounding)
    assert json.loads(said.text)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"type": "string", "minLength": 5, "maxLength": 4}])
async def test_a_schema_without_an_instance_is_refused(schema: dict[str, Any], engine: HFEngine) -> None:
    with pytest.raises(BadRequest, match="cannot be enforced"):
        await say(engine, prompt(), held(schema))
    assert (await say(engine, prompt(), Sampling(max_tokens=2))).tokens


async def test_a_grammar_that_grows_too_complicated_fails_its_request_alone(
    engine: HFEngine, quiet: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from decoding.constraint import Constraint, refused

    take = Constraint.take

    def breaks(constraint: Constraint, token: int) -> None:
        take(constraint, token)
        if constraint is broken:
            raise refused("it is too complicated")

    async def first() -> None:
        nonlocal broken
        async for _ in engine.generate(Ask(prompt(), held())):
            broken = next(request.constraint for request in engine.worker.batch.requests if request.constraint)

    broken: Constraint | None = None
    monkeypatch.setattr(Constraint, "take", breaks)
    free = asyncio.create_task(say(engine, prompt(), Sampling(max_tokens=20, ignore_eos=True)))
    with pytest.raises(BadRequest, match="too complicated"):
        await first()
    assert len((await free).tokens) == 20
