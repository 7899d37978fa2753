"""MVP against a naive reference: every description, first token and path from scratch, without a cache or a batch.

Greedy, so that no two random generators have to agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from decoding.ask import Prompt
from decoding.hf_engine.engine import HFEngine
from decoding.strategies.mvp import MVP, VIEWS
from tests.decoding.hf_engine.asking import answer, exactly, picture
from tests.decoding.hf_engine.reference import Reference

ASKED = Prompt.of("Is there a Cat in the image?", picture(1))
GREEDY = MVP(temperature=0, description_tokens=12, path_tokens=8, paths=5, least=0.0)
WEIGHTS = {"bottom_up": 0.4, "top_down": 0.4, "regular": 0.2}


@dataclass
class Ballot:
    votes: dict[str, float]
    passes: int


def counted(reference: Reference, mvp: MVP, asked: Prompt) -> Ballot:
    ballot = Ballot({"Yes": 0.0, "No": 0.0}, 0)
    words = reference.processor.tokenizer
    for view, weight in WEIGHTS.items():
        description = reference.decode((), asked.with_question(VIEWS[view]), mvp.description_tokens, ends=True).tokens
        text = words.decode(description, skip_special_tokens=True).strip()
        question = f"Here is the caption of the image:\n{text}\nQuestion: {asked.question.lower()}"
        read = reference.read(asked.with_question(question))
        first = reference.logits(read, [], {}).softmax(-1)
        ballot.passes += len(description) + 1
        for q, token in zip(*(best.tolist() for best in first.topk(mvp.paths)), strict=True):
            if words.decode([token]).strip() in ballot.votes:
                ballot.votes[words.decode([token]).strip()] += weight * q
                continue
            path, gaps = [token], [1.0]
            while len(path) < 1 + mvp.path_tokens and path[-1] != words.eos_token_id:
                p = reference.logits(read, path, {}).softmax(-1)
                one, two = p.topk(2).values.tolist()
                path.append(int(p.argmax()))
                gaps.append(one - two)
            ballot.passes += len(path)
            said = [words.decode([token]).strip(" .,\n").capitalize() for token in path]
            at = next((number for number, word in enumerate(said) if word in ballot.votes), None)
            if at is not None:
                ballot.votes[said[at]] += weight * q * gaps[at]
    return ballot


async def test_votes_as_if_every_path_were_recomputed_from_scratch(either: HFEngine, reference: Reference) -> None:
    ballot = counted(reference, GREEDY, ASKED)
    said, spent = await answer(either, (GREEDY,), ASKED, exactly(4, top_logprobs=2))
    assert spent.forward_passes == ballot.passes
    if not any(ballot.votes.values()):  # the random model says neither
        assert said.text == (await answer(either, "plain", ASKED, exactly(4)))[0].text
        return
    assert said.text == max(ballot.votes, key=ballot.votes.__getitem__)
    (token,) = said.tokens
    assert token.chosen is not None
    expected = ballot.votes[said.text] / sum(ballot.votes.values())
    assert 2.718281828**token.chosen.logprob == pytest.approx(expected, abs=1e-3)


async def test_the_embedded_model_does_vote(embedded: HFEngine) -> None:
    """Else the comparison above would prove nothing."""
    said, _ = await answer(embedded, (GREEDY,), ASKED, exactly(4))
    assert said.text in ("Yes", "No")
    assert len(said.tokens) == 1


async def test_sampled_votes_can_be_had_again(embedded: HFEngine) -> None:
    mvp = MVP(description_tokens=12, path_tokens=4)

    async def share(seed: int | None) -> float:
        said, _ = await answer(embedded, (mvp,), ASKED, exactly(4, top_logprobs=0, seed=seed))
        assert said.tokens[0].chosen is not None
        return said.tokens[0].chosen.logprob

    assert await share(7) == await share(7)
    assert await share(7) != await share(8)
