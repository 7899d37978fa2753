"""Log-probabilities of the tokens of prompts, against one pass of transformers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from torch import Tensor

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model import model as model_module
from decoding.outputs import PromptLogprobs
from decoding.pipeline.runner import StrategyRunner, collect_answer
from decoding.prompt import Message
from decoding.requests import GenerateRequest, Prompt
from decoding.text import prompt_logprobs as bounds
from tests.decoding.hf_engine.harness import build_stack, exact_length, generate, make_prompt, wait_until
from tests.decoding.hf_engine.reference import Reference

COUNT = 3


async def score(engine: HFEngine, prompt: Prompt, count: int = COUNT, text: str = "") -> PromptLogprobs:
    async with StrategyRunner(build_stack("vcd"), engine) as runner:
        scored = await runner.score_prompt(GenerateRequest(prompt, continued_text=text), count)
        assert runner.prior_usage.forward_passes == 1
        return scored


def raw_text(text: str) -> Prompt:
    return Prompt((Message("user", (text,)),), raw_text=True)


def compute_logprobs(reference: Reference, prompt: Prompt, tokens: list[int]) -> Tensor:
    """Compute [length - 1, vocab] log-probabilities of the tokens after the first."""
    encoded = reference.encode(prompt)
    ids = torch.cat([encoded.ids, torch.tensor(tokens, dtype=torch.long)])
    with torch.inference_mode():
        logits = reference.model(input_ids=ids[None], pixel_values=encoded.pixels).logits[0]
    return logits[:-1].float().log_softmax(-1)


@pytest.mark.parametrize(("with_image", "text"), [(True, ""), (True, "A cat sits on"), (False, "")])
async def test_scores_equal_the_reference(
    either: HFEngine, reference: Reference, with_image: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "SCORED_TOKENS", 7)  # several chunks
    prompt = make_prompt() if with_image else make_prompt().without_images()
    scored = await score(either, prompt, text=text)
    own = list(either.encoder.encode_continued_text(text)) if text else []
    assert scored.ids == [*either.encoder.encode(prompt).ids.tolist(), *own]
    expected = compute_logprobs(reference, prompt, own)
    targets, scores = torch.tensor(scored.ids[1:]), scored.scores
    image_token = either.model.image_token_id
    assert scored.is_scored.tolist() == [token != image_token for token in scored.ids[1:]]
    logprobs = expected.gather(-1, targets.clamp(max=expected.shape[-1] - 1)[:, None])
    best = expected.topk(COUNT)
    for number in np.flatnonzero(scored.is_scored).tolist():
        value = float(logprobs[number])
        assert scores.logprobs[number] == pytest.approx(value, abs=1e-3)
        assert scores.top_ids[number].tolist() == best.indices[number].tolist()
        assert scores.top_logprobs[number].tolist() == pytest.approx(best.values[number].tolist(), abs=1e-3)
        # A tie within rounding may move a rank.
        above, high = (int((expected[number] >= value + delta).sum()) for delta in (2e-3, -2e-3))
        assert above + 1 <= scores.ranks[number] <= high


async def test_offsets_are_those_of_the_text(either: HFEngine) -> None:
    text = "A café on  a mat, ✓ fine."
    scored = await score(either, raw_text(text), 0)
    assert scored.offsets[-1] == len(either.encoder.tokenizer.decode(scored.ids, skip_special_tokens=True))
    assert list(scored.offsets) == sorted(scored.offsets)
    assert scored.scores.top_ids.shape == (len(scored.ids) - 1, 0)
    assert set(scored.texts) == set(scored.ids)


async def test_scores_do_not_depend_on_other_requests(embedded: HFEngine) -> None:
    await generate(embedded, make_prompt(), exact_length(2))  # its prefix is cached
    before = dict(await embedded.get_counters())
    alone = await score(embedded, make_prompt())
    *_, beside = await asyncio.gather(
        *(generate(embedded, make_prompt(seed), exact_length(12)) for seed in range(3)), score(embedded, make_prompt())
    )
    assert isinstance(beside, PromptLogprobs)
    np.testing.assert_array_equal(beside.scores.logprobs, alone.scores.logprobs)
    np.testing.assert_array_equal(beside.scores.top_ids, alone.scores.top_ids)
    assert before["prefix_cache_hits"] <= (await embedded.get_counters())["prefix_cache_hits"]
    await wait_until(lambda: not embedded.worker.batch.rows)


async def test_scores_cost_one_pass_and_have_no_text(engine: HFEngine) -> None:
    answer = await collect_answer(engine.generate(GenerateRequest(make_prompt(), prompt_logprobs=0)))
    assert (answer.text, answer.finish.usage.steps, answer.finish.usage.forward_passes) == ("", 1, 1)
    assert all(seconds >= 0 for seconds in answer.finish.usage.seconds.values())
    await wait_until(lambda: not engine.worker.batch.rows)


async def test_too_many_scores_are_refused(engine: HFEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = len(engine.encoder.encode(make_prompt()))
    monkeypatch.setattr(bounds, "MAX_ENTRIES", 4 * tokens)
    await score(engine, make_prompt(), 3)
    with pytest.raises(BadRequest, match="log-probabilities") as refusal:
        await score(engine, make_prompt(), 4)
    assert refusal.value.param == "prompt_logprobs"
