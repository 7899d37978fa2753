"""How the next token is chosen, through the engine."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
import torch
from scipy.stats import chisquare

from decoding.ask import Sampling
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.sampler import Chooser, choose
from tests.decoding.hf_engine.asking import answer, exactly, prompt, say

SCORES = torch.tensor([2.0, 1.5, 0.5, 0.5, 0.0, -1.0, -torch.inf, 3.0])
P = SCORES.softmax(-1)


def chooser(sampling: Sampling, prompt: tuple[int, ...] = (), eos: tuple[int, ...] = ()) -> Chooser:
    return Chooser(sampling, torch.tensor(prompt, dtype=torch.long), torch.tensor(eos, dtype=torch.long), len(SCORES))


def drawn(sampling: Sampling, times: int = 4000) -> Counter[int]:
    one = chooser(sampling)
    return Counter(int(choose(SCORES[None], [one])) for _ in range(times))


async def test_the_same_seed_says_the_same_whoever_else_runs(engine: HFEngine) -> None:
    sampling = exactly(24, temperature=1.0, seed=7)
    alone = await say(engine, prompt(), sampling)
    others = [answer(engine, names, prompt(5), exactly(30, temperature=1.0)) for names in ("plain", "vcd", "agla")]
    among_others, *_ = await asyncio.gather(say(engine, prompt(), sampling), *others)
    assert among_others.text == alone.text


async def test_other_seeds_and_no_seed_say_something_else(engine: HFEngine) -> None:
    said = [await say(engine, prompt(), exactly(24, temperature=1.0, seed=seed)) for seed in (1, 2, None, None)]
    assert len({answer.text for answer in said}) == 4


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature: float) -> None:
    """A right sampler fails one of a thousand seeds."""
    counts = drawn(Sampling(temperature=temperature, seed=0))
    expected = 4000 * (SCORES / temperature).softmax(-1).double()
    possible = [token for token in range(len(SCORES)) if expected[token] > 0]
    assert set(counts) <= set(possible)
    observed = [counts[token] for token in possible]
    frequencies = expected[possible] * (sum(observed) / expected[possible].sum())
    assert chisquare(observed, frequencies.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (Sampling(temperature=1, seed=0, top_k=1), {7}),
        (Sampling(temperature=1, seed=0, top_k=3), {7, 0, 1}),
        (Sampling(temperature=1, seed=0, top_k=100), {0, 1, 2, 3, 4, 5, 7}),
        (Sampling(temperature=1, seed=0, top_p=float(P[7]) - 0.01), {7}),
        (Sampling(temperature=1, seed=0, top_p=float(P[7]) + 0.01), {7, 0}),
        (Sampling(temperature=1, seed=0, top_p=float(P[7] + P[0] + P[1]) - 0.01), {7, 0, 1}),
        (Sampling(temperature=1, seed=0, min_p=float(P[1] / P[7]) + 0.01), {7, 0}),
        (Sampling(temperature=1, seed=0, min_p=float(P[1] / P[7]) - 0.01), {7, 0, 1}),
        (Sampling(temperature=2, seed=0, min_p=float(P[1] / P[7]) ** 0.5 - 0.01), {7, 0, 1}),
        (Sampling(temperature=1, seed=0, top_k=2, top_p=0.99), {7, 0}),
        (Sampling(temperature=1e-30, seed=0), {7}),
    ],
)
def test_only_these_can_be_drawn(sampling: Sampling, support: set[int]) -> None:
    assert set(drawn(sampling, times=2000)) == support


@pytest.mark.parametrize("mixed", [False, True])
async def test_penalties_are_those_of_their_definitions(mixed: bool, engine: HFEngine) -> None:
    """Against the greedy choice recomputed from the log-probabilities of the whole vocabulary."""
    vocab = engine.model.vocab
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.7}
    sampling = exactly(24, **(penalties if mixed else {"repetition_penalty": 2.0}))
    ids = engine.model.encoder.encode(prompt()).ids.tolist()
    scores: list[torch.Tensor] = []
    first = torch.zeros(vocab, dtype=torch.bool)
    first[ids] = True
    one = Chooser(sampling, torch.tensor(ids), engine.model.eos, vocab)
    generator = torch.Generator().manual_seed(3)
    said: list[int] = []
    for _ in range(24):
        scores.append(torch.randn(vocab, generator=generator))
        expected = scores[-1].tolist()
        for token in range(vocab):
            if token in ids or token in said:
                factor = sampling.repetition_penalty
                expected[token] = expected[token] / factor if expected[token] > 0 else expected[token] * factor
            expected[token] -= sampling.frequency_penalty * said.count(token)
            expected[token] -= sampling.presence_penalty * (token in said)
        chosen = int(choose(scores[-1][None], [one]))
        assert chosen == max(range(vocab), key=expected.__getitem__)
        one.chose(chosen)
        said.append(chosen)


async def test_penalties_work_through_the_engine(engine: HFEngine) -> None:
    plain = await say(engine, prompt(), exactly(40))
    penalised = await say(engine, prompt(), exactly(40, presence_penalty=100.0))
    assert len({token.id for token in plain.tokens}) < 40
    assert len({token.id for token in penalised.tokens}) == 40


def test_greedy_and_sampled_requests_share_a_step() -> None:
    choosers = [chooser(Sampling()), chooser(Sampling(temperature=1.0, seed=4)), chooser(Sampling(begin=(3,)))]
    alone = int(choose(SCORES[None], [chooser(Sampling(temperature=1.0, seed=4))]))
    assert choose(SCORES.expand(3, -1), choosers).tolist() == [7, alone, 3]
