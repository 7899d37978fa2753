"""The hooks around vLLM's sampler on a simulated GPU: a step waits for the device only where it reads its status."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from decoding.conformance.samples import Samples
from decoding.conformance.simulated_device import DEVICE, copy_all_to_device, simulate_device
from decoding.pipeline.logits_hooks import UNCHANGED
from decoding.registry import list_strategies
from decoding.requests import MAIN
from decoding.vllm_engine.member import Member
from decoding.vllm_engine.worker import step_hook_runner
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_hook_runner import SamplerHookRunner
from decoding.vllm_engine.worker.step_rows import TokenInfo
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.worker.harness import VOCAB, WIDTH, ToyDecoder, build_rows, build_specs

SERVED = [name for name, kind in list_strategies().items() if "logits" in kind.list_hooks()]


@pytest.mark.parametrize("name", SERVED)
def test_steps_wait_only_for_their_status(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = 0

    def read_status(status: Tensor) -> list[int]:
        nonlocal reads
        reads += 1
        assert status.device == DEVICE
        return [UNCHANGED] * len(status)

    monkeypatch.setattr(step_hook_runner, "read_status", read_status)
    (strategy,) = build_stack(name)
    samples = Samples(strategy)
    state = samples.fold_state(strategy)
    names = [f"{name}/{branch}" for branch in samples.branches]
    main = Member(
        "one",
        MAIN,
        1 + len(names),
        stack=build_specs(name),
        branches=tuple(names),
        states={name: "state"} if state else {},
        min_tokens=5,
        eos_token_ids=(3,),
        ruled_out=((7,), (0, 9)),
    )
    members = [main, None, *(Member("one", branch, main.size) for branch in names)]
    plain = Member("two", MAIN, 1, min_tokens=5, eos_token_ids=(3,))
    with simulate_device(), torch.no_grad():
        runner, token_info = SamplerHookRunner(StateStore(1 << 20), DEVICE), TokenInfo()
        with DEVICE:
            decoder = ToyDecoder()
        tap = runner.early_exit_tap = GangEarlyExitTap(decoder, decoder.head, False, 8, torch.float32, DEVICE)
        if state:
            runner.states.put("state", copy_all_to_device(state))
        for generated in range(2):
            step = build_rows(*members, plain, generated=generated)
            tap.before_forward(step, token_info)
            assert tap.is_idle == ("early_exit_layers" not in strategy.list_hooks())
            decoder(torch.empty(len(members) + 1, WIDTH, device=DEVICE))
            tap.after_forward(step, token_info)
            logits = torch.empty(len(members) + 1, VOCAB, device=DEVICE)
            scores = runner.before_sampling(step, logits, token_info)
            assert (scores.shape, scores.device) == (logits.shape, DEVICE)
            sampled = torch.empty(len(members) + 1, 1, dtype=torch.int32, device=DEVICE)
            runner.after_sampling(step, sampled, token_info)
    assert reads == 2
    assert token_info == {"row-0": {"changed": False}, f"row-{len(members)}": {"changed": False}}
