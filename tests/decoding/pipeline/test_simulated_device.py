"""The parts of a step that both engines share, on a simulated GPU: nothing waits for a value of the device."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from decoding.conformance.device_rule import copy_step_to_device
from decoding.conformance.samples import LAYERS, VOCAB, Samples, get_numeric_bounds
from decoding.conformance.simulated_device import DEVICE, simulate_device
from decoding.hf_engine.sampler import SamplerState, sample_tokens
from decoding.pipeline.logits_hooks import LogitsHookRunner, RequestHooks
from decoding.registry import list_strategies
from decoding.requests import MAIN
from decoding.sampling_params import SamplingParams
from decoding.strategy import PER_ROW, Strategy

WITH_LOGITS = {name: kind for name, kind in list_strategies().items() if "logits" in kind.list_hooks()}


def vary(strategy_class: type[Strategy]) -> Strategy:
    """Return the strategy with other values of the parameters that may differ between the rows of a call."""
    names = strategy_class.find_marked_fields(PER_ROW)
    return strategy_class(**{name: get_numeric_bounds(strategy_class, name)["least"] for name in names})


@pytest.mark.parametrize("strategy_class", WITH_LOGITS.values(), ids=WITH_LOGITS.keys())
def test_hooks_of_a_step_do_not_wait(strategy_class: type[Strategy]) -> None:
    """Two requests share a call, with parameters of their own, beside one without a strategy."""
    strategies = (strategy_class(), vary(strategy_class))
    samples = Samples(strategies[0])
    own = [samples.step(strategy) for strategy in strategies]
    names = [f"{strategy_class.name}/{name}" for name in samples.branches]
    with simulate_device():
        steps = [copy_step_to_device(step) for step in own]
        requests = [
            RequestHooks.from_stack((strategy,), names, {strategy.name: step.state})
            for strategy, step in zip(strategies, steps, strict=True)
        ]
        requests.insert(1, RequestHooks.from_stack((), (), {}))
        logits = torch.empty(3 + 2 * len(names), VOCAB, device=DEVICE)
        rows: list[Mapping[str, int]] = [{MAIN: number} for number in range(3)]
        for place, number in enumerate((0, 2)):
            first = 3 + place * len(names)
            rows[number] = {MAIN: number} | {name: first + offset for offset, name in enumerate(names)}
        exits = len(strategies[0].early_exit_layers(LAYERS, False).layers)
        early = {strategy_class.name: torch.empty(exits, VOCAB, device=DEVICE)} if exits else {}
        runner, position = LogitsHookRunner(), torch.empty(3, 1, dtype=torch.long, device=DEVICE)
        for _ in range(2):  # the second step finds the groups of the first one
            results = runner.run(requests, rows, logits[:3], logits, position, [early, {}, early])
            assert results.failures == {}
            assert (results.scores.shape, results.scores.device) == ((3, VOCAB), DEVICE)
            assert results.status.device == DEVICE


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=1.0, top_k=4, top_p=0.9, min_p=0.1),
        SamplingParams(repetition_penalty=1.1, presence_penalty=0.5),
        SamplingParams(temperature=0.5, frequency_penalty=0.5),
        SamplingParams(forced_token_ids=(3,)),
    ],
    ids=["greedy", "truncated", "greedy with penalties", "sampled with penalties", "forced"],
)
def test_sampling_does_not_wait(params: SamplingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator  # the simulated device has none
    monkeypatch.setattr(torch, "Generator", lambda device: generator())
    monkeypatch.setattr(Tensor, "exponential_", lambda tensor, generator: tensor)
    with simulate_device():
        prompt_ids, eos_token_ids = (torch.empty(n, dtype=torch.long, device=DEVICE) for n in (5, 1))
        states = [SamplerState(params, prompt_ids, eos_token_ids, VOCAB) for _ in range(2)]
        for token in range(2):
            sampled = sample_tokens(torch.empty(2, VOCAB, device=DEVICE), states)
            assert (sampled.shape, sampled.device) == ((2,), DEVICE)
            for state in states:
                state.add_token(token)
