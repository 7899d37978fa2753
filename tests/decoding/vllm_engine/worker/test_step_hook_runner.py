"""All hooks of a step, on a toy decoder. No vLLM is needed."""

from __future__ import annotations

import torch

from decoding.pipeline.early_exits import find_early_exits
from decoding.requests import MAIN
from decoding.tensor_hooks import Step
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker.step_hook_runner import StepHookRunner
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.worker.harness import (
    CPU,
    DOLA,
    LAYERS,
    VOCAB,
    WIDTH,
    ToyDecoder,
    build_specs,
    build_step,
    sum_layers,
    tap_decoder,
)


def test_failure_of_a_step_resets_the_tap() -> None:
    runner = StepHookRunner(CPU)
    tap = tap_decoder(ToyDecoder())
    runner.add_early_exit_tap(tap)
    step = build_step(DOLA, lengths=[3])
    runner.before_forward(step)
    tap.buffers.states = torch.empty(0)  # a fault of the engine
    runner.before_sampling(step, torch.randn(1, VOCAB))
    assert tap.is_idle
    assert not tap.buffers.last_tokens.any()
    assert runner.take_token_info().resolve()["row-0"]["error"] == "The engine failed on this request."


@torch.inference_mode()
def test_hooks_receive_their_own_early_logits() -> None:
    """Rows of several stacks share a step. One of the stacks reads no early exits."""
    runner, decoder = StepHookRunner(CPU), ToyDecoder()
    runner.add_early_exit_tap(tap_decoder(decoder))
    deco = Member("deco", MAIN, 1, stack=build_specs("deco"))
    truncate = Member("truncate", MAIN, 1, stack=build_specs("truncate"))
    step, hidden = build_step(deco, truncate, DOLA, lengths=[2, 2, 2]), torch.randn(6, WIDTH)
    runner.before_forward(step)
    last = decoder(hidden)
    runner.after_forward(step)
    raw = decoder.head(decoder.norm(last))[1::2]
    scores = runner.before_sampling(step, raw.clone())
    for row, name in ((0, "deco"), (2, "dola")):
        (strategy,) = build_stack(name)
        layers = find_early_exits((strategy,), LAYERS, False)[name].layers
        states = torch.stack([sum_layers(decoder, hidden, depth)[2 * row + 1] for depth in layers])
        early = decoder.head(decoder.norm(states))
        expected = strategy.logits(Step(raw[row], raw[row], {}, {}, torch.zeros(1), early))
        torch.testing.assert_close(scores[row], expected)
    assert (scores[1] == -torch.inf).any()
    runner.after_sampling(step, scores.argmax(-1, keepdim=True))
    assert not any("error" in info for info in runner.take_token_info().resolve().values())


def test_request_fails_if_the_model_is_not_tapped() -> None:
    """The server refuses such requests at their admission."""
    runner, step = StepHookRunner(CPU), build_step(DOLA, lengths=[1])
    raw = torch.randn(1, VOCAB)
    assert torch.equal(runner.before_sampling(step, raw.clone()), raw)
    runner.after_sampling(step, torch.tensor([[3]]))
    assert runner.take_token_info().resolve()["row-0"]["error"] == "The layers of the model are not tapped."
