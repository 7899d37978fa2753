"""MVP against a naive reference: every description, first token and path from scratch, without a cache or a batch.

Greedy, so that no two random generators have to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from decoding.hf_engine.engine import HFEngine
from decoding.requests import Prompt
from decoding.strategies.mvp import MVP, VIEWS
from tests.decoding.hf_engine.harness import exact_length, make_image, run_strategies
from tests.decoding.hf_engine.reference import Reference

PROMPT = Prompt.from_text("Is there a Cat in the image?", make_image(1))
GREEDY = MVP(temperature=0, description_tokens=12, path_tokens=8, paths=5, least=0.0)
WEIGHTS = {"bottom_up": 0.4, "top_down": 0.4, "regular": 0.2}


@dataclass
class VoteCount:
    votes: dict[str, float]
    passes: int


def count_votes(reference: Reference, mvp: MVP, prompt: Prompt) -> VoteCount:
    count = VoteCount({"Yes": 0.0, "No": 0.0}, 0)
    words = reference.processor.tokenizer
    for view, weight in WEIGHTS.items():
        description = reference.decode((), prompt.with_question(VIEWS[view]), mvp.description_tokens, ends=True).tokens
        text = words.decode(description, skip_special_tokens=True).strip()
        question = f"Here is the caption of the image:\n{text}\nQuestion: {prompt.question.lower()}"
        read = reference.encode(prompt.with_question(question))
        first = reference.logits(read, [], {}).softmax(-1)
        count.passes += len(description) + 1
        for q, token in zip(*(best.tolist() for best in first.topk(mvp.paths)), strict=True):
            if words.decode([token]).strip() in count.votes:
                count.votes[words.decode([token]).strip()] += weight * q
                continue
            path, gaps = [token], [1.0]
            while len(path) < 1 + mvp.path_tokens and path[-1] != words.eos_token_id:
                p = reference.logits(read, path, {}).softmax(-1)
                one, two = p.topk(2).values.tolist()
                path.append(int(p.argmax()))
                gaps.append(one - two)
            count.passes += len(path)
            path_words = [words.decode([token]).strip(" .,\n").capitalize() for token in path]
            at = next((number for number, word in enumerate(path_words) if word in count.votes), None)
            if at is not None:
                count.votes[path_words[at]] += weight * q * gaps[at]
    return count


async def test_votes_equal_recomputation(either: HFEngine, reference: Reference) -> None:
    count = count_votes(reference, GREEDY, PROMPT)
    answer, prior_usage = await run_strategies(either, (GREEDY,), PROMPT, exact_length(4, top_logprobs=2))
    assert prior_usage.forward_passes == count.passes
    if not any(count.votes.values()):  # the random model gives neither answer
        assert answer.text == (await run_strategies(either, "plain", PROMPT, exact_length(4)))[0].text
        return
    assert answer.text == max(count.votes, key=count.votes.__getitem__)
    (token,) = answer.tokens
    assert token.chosen is not None
    expected = count.votes[answer.text] / sum(count.votes.values())
    assert 2.718281828**token.chosen.logprob == pytest.approx(expected, abs=1e-3)


async def test_embedded_model_votes(embedded: HFEngine) -> None:
    """Otherwise the comparison above would prove nothing."""
    answer, _ = await run_strategies(embedded, (GREEDY,), PROMPT, exact_length(4))
    assert answer.text in ("Yes", "No")
    assert len(answer.tokens) == 1


async def test_sampled_votes_are_reproducible(embedded: HFEngine) -> None:
    mvp = MVP(description_tokens=12, path_tokens=4)

    async def vote_logprob(seed: int | None) -> float:
        answer, _ = await run_strategies(embedded, (mvp,), PROMPT, exact_length(4, top_logprobs=0, seed=seed))
        assert answer.tokens[0].chosen is not None
        return answer.tokens[0].chosen.logprob

    first = await vote_logprob(7)
    assert await vote_logprob(7) == pytest.approx(first, abs=1e-5)  # the requests that share a pass vary
    assert abs(await vote_logprob(8) - first) > 1e-4
