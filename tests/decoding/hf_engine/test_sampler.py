"""Sampling of the next token, and its use in the engine."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from scipy.stats import chisquare

from decoding.errors import BadRequest
from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.sampler import SamplerState, sample_tokens
from decoding.requests import SamplingParams
from tests.decoding.hf_engine.harness import build_stack, exact_length, generate, make_prompt, run_strategies

SCORES = torch.tensor([2.0, 1.5, 0.5, 0.5, 0.0, -1.0, -torch.inf, 3.0])
P = SCORES.softmax(-1)
LENGTH = 12
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 5},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.3},
}


def make_sampler(sampling: SamplingParams, prompt: tuple[int, ...] = (), eos: tuple[int, ...] = ()) -> SamplerState:
    return SamplerState(
        sampling, torch.tensor(prompt, dtype=torch.long), torch.tensor(eos, dtype=torch.long), len(SCORES)
    )


def count_samples(sampling: SamplingParams, times: int = 4000) -> Counter[int]:
    one = make_sampler(sampling)
    return Counter(int(sample_tokens(SCORES[None], [one])) for _ in range(times))


async def test_seed_is_reproducible_in_any_batch(engine: HFEngine) -> None:
    sampling = exact_length(24, temperature=1.0, seed=7)
    alone = await generate(engine, make_prompt(), sampling)
    others = [
        run_strategies(engine, names, make_prompt(5), exact_length(30, temperature=1.0))
        for names in ("plain", "vcd", "agla")
    ]
    among_others, *_ = await asyncio.gather(generate(engine, make_prompt(), sampling), *others)
    assert among_others.text == alone.text


async def test_other_seeds_give_other_tokens(engine: HFEngine) -> None:
    answers = [
        await generate(engine, make_prompt(), exact_length(24, temperature=1.0, seed=seed))
        for seed in (1, 2, None, None)
    ]
    assert len({answer.text for answer in answers}) == 4


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_sample_frequencies_match_the_probabilities(temperature: float) -> None:
    """A correct sampler fails for one of a thousand seeds."""
    counts = count_samples(SamplingParams(temperature=temperature, seed=0))
    expected = 4000 * (SCORES / temperature).softmax(-1).double()
    possible = [token for token in range(len(SCORES)) if expected[token] > 0]
    assert set(counts) <= set(possible)
    observed = [counts[token] for token in possible]
    frequencies = expected[possible] * (sum(observed) / expected[possible].sum())
    assert chisquare(observed, frequencies.numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("sampling", "support"),
    [
        (SamplingParams(temperature=1, seed=0, top_k=1), {7}),
        (SamplingParams(temperature=1, seed=0, top_k=3), {7, 0, 1}),
        (SamplingParams(temperature=1, seed=0, top_k=100), {0, 1, 2, 3, 4, 5, 7}),
        (SamplingParams(temperature=1, seed=0, top_p=float(P[7]) - 0.01), {7}),
        (SamplingParams(temperature=1, seed=0, top_p=float(P[7]) + 0.01), {7, 0}),
        (SamplingParams(temperature=1, seed=0, top_p=float(P[7] + P[0] + P[1]) - 0.01), {7, 0, 1}),
        (SamplingParams(temperature=1, seed=0, min_p=float(P[1] / P[7]) + 0.01), {7, 0}),
        (SamplingParams(temperature=1, seed=0, min_p=float(P[1] / P[7]) - 0.01), {7, 0, 1}),
        (SamplingParams(temperature=2, seed=0, min_p=float(P[1] / P[7]) ** 0.5 - 0.01), {7, 0, 1}),
        (SamplingParams(temperature=1, seed=0, top_k=2, top_p=0.99), {7, 0}),
        (SamplingParams(temperature=1e-30, seed=0), {7}),
    ],
)
def test_cuts_limit_the_support(sampling: SamplingParams, support: set[int]) -> None:
    assert set(count_samples(sampling, times=2000)) == support


@pytest.mark.parametrize("mixed", [False, True])
async def test_penalties_follow_their_definitions(mixed: bool, engine: HFEngine) -> None:
    """Compare with the greedy choice, recomputed from the scores of the whole vocabulary."""
    vocab = engine.model.vocab_size
    penalties = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.7}
    sampling = exact_length(24, **(penalties if mixed else {"repetition_penalty": 2.0}))
    ids = engine.model.encoder.encode(make_prompt()).ids.tolist()
    scores: list[torch.Tensor] = []
    first = torch.zeros(vocab, dtype=torch.bool)
    first[ids] = True
    one = SamplerState(sampling, torch.tensor(ids), engine.model.eos_token_ids_on_device, vocab)
    generator = torch.Generator().manual_seed(3)
    tokens: list[int] = []
    for _ in range(24):
        scores.append(torch.randn(vocab, generator=generator))
        expected = scores[-1].tolist()
        for token in range(vocab):
            if token in ids or token in tokens:
                factor = sampling.repetition_penalty
                expected[token] = expected[token] / factor if expected[token] > 0 else expected[token] * factor
            expected[token] -= sampling.frequency_penalty * tokens.count(token)
            expected[token] -= sampling.presence_penalty * (token in tokens)
        chosen = int(sample_tokens(scores[-1][None], [one]))
        assert chosen == max(range(vocab), key=expected.__getitem__)
        one.add_token(chosen)
        tokens.append(chosen)


async def test_engine_applies_penalties(engine: HFEngine) -> None:
    plain = await generate(engine, make_prompt(), exact_length(40))
    penalised = await generate(engine, make_prompt(), exact_length(40, presence_penalty=100.0))
    assert len({token.id for token in plain.tokens}) < 40
    assert len({token.id for token in penalised.tokens}) == 40


def test_greedy_and_sampled_requests_share_a_step() -> None:
    samplers = [
        make_sampler(SamplingParams()),
        make_sampler(SamplingParams(temperature=1.0, seed=4)),
        make_sampler(SamplingParams(forced_token_ids=(3,))),
    ]
    alone = int(sample_tokens(SCORES[None], [make_sampler(SamplingParams(temperature=1.0, seed=4))]))
    assert sample_tokens(SCORES.expand(3, -1), samplers).tolist() == [7, alone, 3]


async def choose_biases(engine: HFEngine, names: str) -> dict[int, float]:
    """Forbid the first token, and make a token that is likely later on a bit likelier."""
    answer, _ = await run_strategies(engine, names, make_prompt(), exact_length(LENGTH))
    tokens = [token.id for token in answer.tokens]
    return {tokens[0]: -100.0, tokens[4]: 2.5, tokens[-1]: -1.5, 3: 0.25}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("names", ["plain", "vcd"])
async def test_bias_equals_the_naive_reference(names: str, way: str, engine: HFEngine, reference_of_tiny: Any) -> None:
    """The log-probabilities are those of the strategies, without the bias."""
    bias = await choose_biases(engine, names)
    sampling = exact_length(LENGTH, logit_bias=tuple(bias.items()), top_logprobs=0, **WAYS[way])
    others = [run_strategies(engine, "vcd", make_prompt(seed), exact_length(LENGTH)) for seed in (1, 2)]
    (answer, _), *_ = await asyncio.gather(run_strategies(engine, names, make_prompt(), sampling), *others)
    penalties = tuple(getattr(sampling, f"{name}_penalty") for name in ("repetition", "frequency", "presence"))
    expected = reference_of_tiny.decode(
        build_stack(names), make_prompt(), LENGTH, seed=sampling.seed, penalties=penalties, bias=bias
    )
    assert [token.id for token in answer.tokens] == expected.tokens
    unbiased = reference_of_tiny.decode(
        build_stack(names), make_prompt(), LENGTH, seed=sampling.seed, penalties=penalties
    )
    assert expected.tokens != unbiased.tokens
    logprobs = [token.chosen.logprob for token in answer.tokens if token.chosen]
    assert logprobs == pytest.approx(expected.logprobs, abs=1e-3)


async def test_stop_token_ends_the_answer_before_its_text(engine: HFEngine) -> None:
    free = await generate(engine, make_prompt(), exact_length(LENGTH))
    stop = next(token.id for token in free.tokens[3:] if token.id not in [each.id for each in free.tokens[:3]])
    before = [token.id for token in free.tokens].index(stop)
    answer = await generate(engine, make_prompt(), exact_length(LENGTH, stop_token_ids=(stop,), top_logprobs=0))
    assert [token.id for token in answer.tokens] == [token.id for token in free.tokens[: before + 1]]
    assert answer.text == "".join(token.text for token in free.tokens[:before])
    assert (answer.finish.reason, answer.tokens[-1].chosen) == ("stop", None)
    later = await generate(engine, make_prompt(), exact_length(LENGTH, stop_token_ids=(stop,), min_tokens=before + 2))
    assert stop not in [token.id for token in later.tokens[: before + 2]]


@pytest.mark.parametrize("fields", [{"logit_bias": ((1 << 30, 1.0),)}, {"stop_token_ids": (1 << 30,)}])
async def test_unknown_token_is_refused(engine: HFEngine, fields: Mapping[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        await generate(engine, make_prompt(), SamplingParams(max_tokens=2, **fields))
    assert refused.value.param in fields
    first_unknown = {"stop_token_ids": (engine.model.vocab_size,)}
    with pytest.raises(BadRequest, match=f"only 0 to {engine.model.vocab_size - 1}"):
        await generate(engine, make_prompt(), SamplingParams(max_tokens=2, **first_unknown))
