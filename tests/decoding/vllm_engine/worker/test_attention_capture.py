"""Captures of attention by probes, on a toy cache with the layout of a GPU. No vLLM is needed."""

from __future__ import annotations

import torch

from decoding.conformance.simulated_device import DEVICE, simulate_device
from decoding.requests import MAIN
from decoding.vllm_engine.member import Member, ProbeSpec, StrategySpec
from decoding.vllm_engine.worker.step_rows import TokenInfo
from tests.decoding.vllm_engine.worker.harness import (
    HEAD_DIM,
    HEADS,
    IMAGE,
    KV_HEADS,
    OTHER,
    PROMPT,
    ToyStep,
    build_step,
    build_tap,
)


def build_probe(*capture: str) -> Member:
    spec = ProbeSpec(StrategySpec("sid", "{}"), "with_image", False, "state", capture)
    return Member(f"gang of {capture}", MAIN, 1, is_single_step=True, probe=spec)


def test_weights_are_those_of_the_last_token_on_the_image() -> None:
    torch.manual_seed(0)
    device = torch.device("cpu")
    members = (OTHER, build_probe("attention"), build_probe("heads"))
    step = ToyStep(build_step(*members, computed=[7, 0, 0], lengths=[1, PROMPT, PROMPT]), device)
    tap, layer = build_tap(device)
    tap.before_forward(step.rows, TokenInfo())
    step.call(layer)
    assert set(tap.captured_attention) == {1}
    assert not step.output.any()
    blocks = step.cache[step.block_table[1]]
    image = [key for key in range(PROMPT) if IMAGE[key] >= 0]
    for head in range(HEADS):
        keys = blocks[:, head * KV_HEADS // HEADS].flatten(0, 1)[:PROMPT, :HEAD_DIM]
        weights = (keys @ step.query[PROMPT, head] * HEAD_DIM**-0.5).softmax(-1)
        torch.testing.assert_close(tap.captured_attention[1][head], weights[image])
    tap.after_forward(step.rows, TokenInfo())
    assert not tap.captured_attention


def test_captures_do_not_wait_for_the_device() -> None:
    with simulate_device(), torch.no_grad():
        step = ToyStep(build_step(build_probe("attention"), computed=[0], lengths=[PROMPT]), DEVICE)
        tap, layer = build_tap(DEVICE)
        tap.before_forward(step.rows, TokenInfo())
        step.call(layer)
        assert tap.captured_attention[0].device == DEVICE
