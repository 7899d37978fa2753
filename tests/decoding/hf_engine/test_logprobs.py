"""Log-probabilities, grounding and the probabilities of scored texts, against the naive reference."""

from __future__ import annotations

import pytest

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.outputs import Answer
from decoding.pipeline.runner import collect_answer
from decoding.requests import GenerateRequest, Prompt
from tests.decoding.hf_engine.harness import (
    build_stack,
    exact_length,
    generate,
    make_prompt,
    run_strategies,
    wait_until,
)
from tests.decoding.hf_engine.reference import Reference

N = 8


async def test_top_logprobs_equal_the_reference(either: HFEngine, reference: Reference) -> None:
    answer = await generate(either, make_prompt(), exact_length(N, top_logprobs=3))
    raw = reference.decode((), make_prompt(), N).raw
    for token, logits in zip(answer.tokens, raw, strict=True):
        best = logits.log_softmax(-1).topk(3)
        assert [one.id for one in token.top] == best.indices.tolist()
        assert [one.logprob for one in token.top] == pytest.approx(best.values.tolist(), abs=1e-3)
        assert token.chosen == token.top[0]


async def test_logprobs_are_none_unless_requested(engine: HFEngine) -> None:
    answer = await generate(engine, make_prompt(), exact_length(N))
    assert all(token.chosen is None and token.top == () for token in answer.tokens)
    answer = await generate(engine, make_prompt(), exact_length(N, top_logprobs=0))
    assert all(token.chosen is not None and token.top == () for token in answer.tokens)


async def test_bytes_of_the_tokens_equal_the_text(engine: HFEngine) -> None:
    answer = await generate(engine, make_prompt(), exact_length(40, top_logprobs=0))
    spelled = b"".join(token.chosen.bytes for token in answer.tokens if token.chosen)
    assert spelled.decode(errors="replace") == answer.text


async def test_masked_token_has_infinite_negative_logprob(engine: HFEngine) -> None:
    answer, _ = await run_strategies(engine, "truncate", make_prompt(), exact_length(N, top_logprobs=20))
    assert any(one.logprob == float("-inf") for token in answer.tokens for one in token.top)


async def test_grounding_is_the_logprob_difference_with_and_without_the_image(
    either: HFEngine, reference: Reference
) -> None:
    answer, _ = await run_strategies(either, "plain", make_prompt(), exact_length(N), grounding=True)
    tokens = [token.id for token in answer.tokens]
    expected = []
    for position, token in enumerate(tokens):
        with_image, without_image = (
            reference.logits(reference.encode(prompt), tokens[:position], {}).log_softmax(-1)[token]
            for prompt in (make_prompt(), make_prompt().without_images())
        )
        expected.append(float(with_image - without_image))
    assert [token.grounding for token in answer.tokens] == pytest.approx(expected, abs=1e-3)
    assert answer.text == (await generate(either, make_prompt(), exact_length(N))).text


async def test_grounding_ignores_the_strategies(engine: HFEngine) -> None:
    measured, _ = await run_strategies(engine, "agla+vhr", make_prompt(), exact_length(N), grounding=True)
    alone, _ = await run_strategies(engine, "agla+vhr", make_prompt(), exact_length(N))
    assert measured.text == alone.text
    assert all(token.grounding is not None for token in measured.tokens)


async def test_grounding_without_images_is_zero(engine: HFEngine) -> None:
    answer, _ = await run_strategies(
        engine, "plain", Prompt.from_text("Is there a cat?"), exact_length(N), grounding=True
    )
    # Two rows of one prompt can differ in their last bits: the kernel of a row depends on the machine.
    assert [token.grounding for token in answer.tokens] == pytest.approx([0.0] * N, abs=1e-4)


async def test_missing_grounding_branch_is_rejected(engine: HFEngine) -> None:
    with pytest.raises(BadRequest):
        await collect_answer(
            engine.generate(GenerateRequest(make_prompt(), exact_length(1), grounding_branch="no/such"))
        )


async def score_texts(engine: HFEngine, *texts: str) -> Answer:
    return await collect_answer(
        engine.generate(GenerateRequest(make_prompt(text="Is there a cat?"), scored_texts=texts))
    )


async def test_choices_sum_over_their_first_tokens(either: HFEngine, reference: Reference) -> None:
    answer = await score_texts(either, "Yes", "No")
    tokenizer = reference.processor.tokenizer
    p = reference.decode((), make_prompt(text="Is there a cat?"), 1).raw[0].softmax(-1)
    for word in ("Yes", "No"):
        firsts = {tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in (word, f" {word}")}
        assert answer.text_logprobs[word] == pytest.approx(float(p[list(firsts)].sum().log()), abs=1e-3)


async def test_choices_cost_one_pass_and_have_no_text(engine: HFEngine) -> None:
    answer = await score_texts(engine, "Yes", "No")
    assert answer.text == ""
    usage = answer.finish.usage
    assert (usage.steps, usage.forward_passes) == (1, 1)
    assert all(seconds >= 0 for seconds in usage.seconds.values())
    await wait_until(lambda: not engine.worker.batch.rows)


async def test_choices_are_scored_after_the_strategies(engine: HFEngine) -> None:
    request = GenerateRequest(make_prompt(text="Is there a cat?"), scored_texts=("Yes", "No"))
    plain = await collect_answer(engine.generate(request))
    (vcd,) = build_stack("vcd", vcd={"beta": 0})
    noisy = vcd.prepare(request).with_strategy(vcd).replace(stack=(vcd,))
    assert (await collect_answer(engine.generate(noisy))).text_logprobs != plain.text_logprobs
