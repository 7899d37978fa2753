"""Log-probabilities, grounding and the probabilities of choices, against the naive reference."""

from __future__ import annotations

import pytest

from decoding.answer import Answer
from decoding.ask import Ask, Prompt
from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.stack import collect
from tests.decoding.hf_engine.asking import answer, exactly, prompt, say, stack, until
from tests.decoding.hf_engine.reference import Reference

N = 8


async def test_the_likeliest_tokens_come_with_their_logprobs(either: HFEngine, reference: Reference) -> None:
    said = await say(either, prompt(), exactly(N, top_logprobs=3))
    raw = reference.decode((), prompt(), N).raw
    for token, logits in zip(said.tokens, raw, strict=True):
        best = logits.log_softmax(-1).topk(3)
        assert [one.id for one in token.top] == best.indices.tolist()
        assert [one.logprob for one in token.top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert token.chosen == token.top[0]


async def test_logprobs_are_none_unless_asked_for(engine: HFEngine) -> None:
    said = await say(engine, prompt(), exactly(N))
    assert all(token.chosen is None and token.top == () for token in said.tokens)
    said = await say(engine, prompt(), exactly(N, top_logprobs=0))
    assert all(token.chosen is not None and token.top == () for token in said.tokens)


async def test_the_bytes_of_the_chosen_tokens_make_the_text(engine: HFEngine) -> None:
    said = await say(engine, prompt(), exactly(40, top_logprobs=0))
    spelled = b"".join(token.chosen.bytes for token in said.tokens if token.chosen)
    assert spelled.decode(errors="replace") == said.text


async def test_a_token_that_a_strategy_rules_out_is_infinitely_unlikely(engine: HFEngine) -> None:
    said, _ = await answer(engine, "truncate", prompt(), exactly(N, top_logprobs=20))
    assert any(one.logprob == float("-inf") for token in said.tokens for one in token.top)


async def test_grounding_is_how_much_likelier_the_picture_makes_a_token(either: HFEngine, reference: Reference) -> None:
    said, _ = await answer(either, "plain", prompt(), exactly(N), grounding=True)
    tokens = [token.id for token in said.tokens]
    expected = []
    for position, token in enumerate(tokens):
        seeing, blind = (
            reference.logits(reference.read(asked), tokens[:position], {}).log_softmax(-1)[token]
            for asked in (prompt(), prompt().without_pictures())
        )
        expected.append(float(seeing - blind))
    assert [token.grounding for token in said.tokens] == pytest.approx(expected, abs=1e-3)
    assert said.text == (await say(either, prompt(), exactly(N))).text


async def test_grounding_measures_the_model_and_not_its_strategies(engine: HFEngine) -> None:
    measured, _ = await answer(engine, "agla+vhr", prompt(), exactly(N), grounding=True)
    alone, _ = await answer(engine, "agla+vhr", prompt(), exactly(N))
    assert measured.text == alone.text
    assert all(token.grounding is not None for token in measured.tokens)


async def test_a_prompt_without_pictures_grounds_nothing(engine: HFEngine) -> None:
    said, _ = await answer(engine, "plain", Prompt.of("Is there a cat?"), exactly(N), grounding=True)
    # The same prompt in two rows of a batch: which kernel a row meets depends on the machine, its last bits with it.
    assert [token.grounding for token in said.tokens] == pytest.approx([0.0] * N, abs=1e-4)


async def test_a_comparison_with_a_branch_that_is_not_there_is_refused(engine: HFEngine) -> None:
    with pytest.raises(BadRequest):
        await collect(engine.generate(Ask(prompt(), exactly(1), compare="no/such")))


async def weighed(engine: HFEngine, *choices: str) -> Answer:
    return await collect(engine.generate(Ask(prompt(text="Is there a cat?"), choices=choices)))


async def test_choices_are_weighed_by_the_tokens_they_begin_with(either: HFEngine, reference: Reference) -> None:
    said = await weighed(either, "Yes", "No")
    tokenizer = reference.processor.tokenizer
    p = reference.decode((), prompt(text="Is there a cat?"), 1).raw[0].softmax(-1)
    for choice in ("Yes", "No"):
        firsts = {tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (choice, f" {choice}")}
        assert said.choices[choice] == pytest.approx(float(p[list(firsts)].sum().log()), abs=1e-3)


async def test_choices_cost_one_pass_and_say_nothing(engine: HFEngine) -> None:
    said = await weighed(engine, "Yes", "No")
    assert said.text == ""
    usage = said.end.usage
    assert (usage.steps, usage.forward_passes) == (1, 1)
    assert all(seconds >= 0 for seconds in usage.seconds.values())
    await until(lambda: not engine.worker.batch.rows)


async def test_choices_are_weighed_after_the_strategies(engine: HFEngine) -> None:
    asked = Ask(prompt(text="Is there a cat?"), choices=("Yes", "No"))
    plain = await collect(engine.generate(asked))
    (vcd,) = stack("vcd", vcd={"beta": 0})
    noisy = vcd.prepare(asked).but(stack=(vcd,))
    assert (await collect(engine.generate(noisy))).choices != plain.choices
