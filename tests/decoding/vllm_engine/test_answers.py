"""Everything else about an answer, as the transformers engine gives it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from torch import Tensor

from decoding.answer import Answer
from decoding.ask import Ask, Prompt, Sampling
from decoding.errors import BadRequest, Overloaded, Unsupported
from decoding.grammar import grammar_of
from decoding.stack import collect
from decoding.strategy import Step, Strategy
from tests.decoding.hf_engine.asking import answer, exactly, stack
from tests.decoding.vllm_engine.scenes import ids, prompts

(ASKED,) = prompts(1)
SCHEMA = {
    "type": "object",
    "properties": {"object": {"enum": ["cat", "dog"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["object", "count"],
    "additionalProperties": False,
}


async def both(hf: Any, vllm: Any, names: str, sampling: Sampling, **options: Any) -> tuple[Answer, Answer]:
    return tuple([(await answer(engine, names, ASKED, sampling, **options))[0] for engine in (hf, vllm)])  # type: ignore[return-value]


def same(one: Answer, other: Answer) -> None:
    assert ids(one) == ids(other)
    assert [token.text for token in one.tokens] == [token.text for token in other.tokens]
    assert [token.changed for token in one.tokens] == [token.changed for token in other.tokens]
    assert one.end.reason == other.end.reason


@pytest.mark.parametrize("names", ["plain", "vcd", "truncate"])
async def test_logprobs_are_those_after_the_strategies(names: str, hf: Any, roomy: Any) -> None:
    expected, said = await both(hf, roomy, names, exactly(12, top_logprobs=4))
    same(expected, said)
    for token, other in zip(said.tokens, expected.tokens, strict=True):
        assert token.chosen is not None
        assert other.chosen is not None
        assert (token.chosen.id, token.chosen.text, token.chosen.bytes) == (
            other.chosen.id,
            other.chosen.text,
            other.chosen.bytes,
        )
        assert token.chosen.logprob == pytest.approx(other.chosen.logprob, abs=1e-3)
        possible = [one.id for one in other.top if one.logprob > float("-inf")]
        assert [one.id for one in token.top][: len(possible)] == possible
        assert [one.logprob for one in token.top] == pytest.approx([one.logprob for one in other.top], abs=1e-3)


@pytest.mark.parametrize("names", ["plain", "agla"])
async def test_grounding(names: str, hf: Any, roomy: Any) -> None:
    expected, said = await both(hf, roomy, names, exactly(12), grounding=True)
    same(expected, said)
    assert [token.grounding for token in said.tokens] == pytest.approx(
        [token.grounding for token in expected.tokens], abs=1e-3
    )


@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_choices_are_weighed_in_one_pass(names: str, hf: Any, roomy: Any) -> None:
    async def weigh(engine: Any) -> Answer:
        asked = Ask(ASKED, Sampling(), choices=("Yes", "No"))
        for strategy in reversed(stack(names)):
            asked = strategy.prepare(asked).but(stack=(strategy, *asked.stack))
        return await collect(engine.generate(asked))

    expected, said = await weigh(hf), await weigh(roomy)
    assert dict(said.choices) == pytest.approx(dict(expected.choices), abs=1e-3)
    assert said.end.usage.forward_passes == expected.end.usage.forward_passes


@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_an_answer_ends_by_itself_before_a_stop_string_and_at_its_length(names: str, hf: Any, roomy: Any) -> None:
    by_itself = await both(hf, roomy, names, Sampling(max_tokens=200))
    same(*by_itself)
    assert by_itself[1].end.reason == "stop"
    word = by_itself[1].text.split()[6]
    same(*await both(hf, roomy, names, Sampling(max_tokens=200, stop=(word,))))
    at_length = await both(hf, roomy, names, Sampling(max_tokens=5))
    same(*at_length)
    assert at_length[1].end.reason == "length"


@pytest.mark.parametrize("names", ["plain", "vcd", "agla+vcd", "vdgd"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
async def test_every_strategy_keeps_to_a_grammar(names: str, temperature: float, hf: Any, roomy: Any) -> None:
    held = Sampling(max_tokens=64, temperature=temperature, seed=3, grammar=grammar_of(SCHEMA))
    expected, said = await both(hf, roomy, names, held)
    assert said.end.reason == "stop"
    assert said.text.startswith('{"object": "')
    if temperature == 0:
        same(expected, said)


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.3}, {"presence_penalty": 1.5, "frequency_penalty": 0.5}, {"min_tokens": 30}]
)
async def test_penalties_act_after_the_strategies(penalty: dict[str, Any], hf: Any, roomy: Any) -> None:
    same(*await both(hf, roomy, "vcd", Sampling(max_tokens=40, **penalty)))


@pytest.mark.parametrize("names", ["plain", "truncate", "vcd"])
async def test_a_cut_that_would_keep_the_end_alone_keeps_what_may_be_said(names: str, hf: Any, roomy: Any) -> None:
    least = Sampling(max_tokens=60, min_tokens=50, top_logprobs=0)
    sharp = stack(names, **({} if names == "plain" else {names: {"beta": 1.0}}))
    expected, said = [(await answer(engine, sharp, ASKED, least))[0] for engine in (hf, roomy)]
    same(expected, said)
    assert len((await answer(hf, sharp, ASKED, Sampling(max_tokens=50)))[0].tokens) < 50
    told = [[token.chosen.logprob for token in one.tokens if token.chosen] for one in (said, expected)]
    assert told[0] == pytest.approx(told[1], abs=1e-3)


class Stranger(Strategy):
    """Nobody has registered it."""

    name = "stranger"
    paper = "none"

    def logits(self, step: Step) -> Tensor:
        return -step.scores


@pytest.mark.parametrize("names", ["plain", "vcd"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("begin", [(301, 275), (900, 17)], ids=["likely", "not among the likeliest"])
async def test_an_answer_begins_as_it_is_told(
    names: str, temperature: float, begin: tuple[int, ...], hf: Any, roomy: Any
) -> None:
    begun = exactly(8, begin=begin, top_logprobs=2, temperature=temperature, seed=1)
    expected, said = await both(hf, roomy, names, begun)
    assert ids(said)[:2] == list(begin)
    if temperature == 0:
        same(expected, said)
        told = [[token.chosen.logprob for token in one.tokens if token.chosen] for one in (said, expected)]
        assert told[0] == pytest.approx(told[1], abs=1e-3)


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"type": "string", "minLength": 5, "maxLength": 4}])
async def test_a_schema_without_an_instance_is_refused(schema: dict[str, Any], roomy: Any) -> None:
    with pytest.raises(BadRequest, match="cannot be enforced"):
        await answer(roomy, "vcd", ASKED, Sampling(grammar=json.dumps(schema)))
    assert (await answer(roomy, "vcd", ASKED, exactly(2)))[0].tokens


async def test_descriptions_that_find_no_room_are_refused_and_the_others_answered(
    roomy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, _ = await answer(roomy, "vdgd", ASKED, exactly(4))
    monkeypatch.setattr(roomy._handles, "most_bytes", 5 * roomy.reader.vocab)
    said = await asyncio.gather(*(answer(roomy, "vdgd", ASKED, exactly(4)) for _ in range(3)), return_exceptions=True)
    refused = [one for one in said if isinstance(one, Overloaded)]
    assert [one.code for one in refused] == ["memory_full"] * 2
    assert [ids(one[0]) for one in said if isinstance(one, tuple)] == [ids(alone)]
    assert ids((await answer(roomy, "vdgd", ASKED, exactly(4)))[0]) == ids(alone)


async def test_what_it_cannot_do_is_refused(roomy: Any) -> None:
    with pytest.raises(Unsupported, match="not registered"):
        await answer(roomy, (Stranger(),), ASKED, exactly(2))
    crowded = Ask(ASKED, exactly(1900), branches={f"toy/{n}": ASKED for n in range(40)})
    with pytest.raises(BadRequest, match="fit the engine's cache"):
        await collect(roomy.generate(crowded))
    with pytest.raises(BadRequest, match="rows"):
        await collect(roomy.generate(Ask(ASKED, exactly(2), branches={f"toy/{n}": ASKED for n in range(64)})))


async def test_a_search_that_asks_many_questions_ends_as_it_does_there(hf: Any, roomy: Any) -> None:
    asked = Prompt.of("Is there a dog in the image?", *prompts(2)[1].pictures)
    (expected, cost), (said, spent) = [
        await answer(engine, "zoomeye", asked, Sampling(max_tokens=8)) for engine in (hf, roomy)
    ]
    same(expected, said)
    assert spent.forward_passes == cost.forward_passes > 10


async def test_paths_can_vote(roomy: Any) -> None:
    """Drawn from other random numbers than there."""
    asked = Prompt.of("Is there a dog in the image?", *prompts(2)[1].pictures)
    votes = [(await answer(roomy, "mvp", asked, Sampling(seed=4, top_logprobs=2)))[0] for _ in range(2)]
    assert votes[0].text in ("Yes", "No")
    assert votes[0].tokens == votes[1].tokens
