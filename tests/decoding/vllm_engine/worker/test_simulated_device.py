"""The hooks around vLLM's sampler on a simulated GPU: a step waits for the device only where its values are read."""

from __future__ import annotations

import pytest
import torch

from decoding.conformance.samples import Samples
from decoding.conformance.simulated_device import DEVICE, copy_all_to_device, simulate_device
from decoding.pipeline.logits_hooks import UNCHANGED
from decoding.registry import list_strategies
from decoding.requests import MAIN
from decoding.vllm_engine.member import Member, StateUpdate
from decoding.vllm_engine.worker import pending_token_info
from decoding.vllm_engine.worker.early_exit_tap import GangEarlyExitTap
from decoding.vllm_engine.worker.newest_tokens import PLACEHOLDER
from decoding.vllm_engine.worker.pending_token_info import HostCopy
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_hook_runner import SamplerHookRunner
from decoding.vllm_engine.worker.step_rows import TokenInfo
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.worker.harness import VOCAB, WIDTH, ToyDecoder, build_rows, build_specs

SERVED = [name for name, kind in list_strategies().items() if "logits" in kind.list_hooks()]


@pytest.mark.parametrize("name", SERVED)
def test_steps_wait_only_for_their_values(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_token_info, "record_event", lambda _: None)
    monkeypatch.setattr(HostCopy, "read", lambda copy: [UNCHANGED] * 2 + [0.5] * (len(copy._numbers) - 2))
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
        forced_token_ids=(4,),
        first_tokens={"yes": (1, 2), "no": (5,)},
        grounding_branch=names[0] if names else None,
        state_update=StateUpdate(*build_specs("vdgd"), "folded", (3,)),
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
            step.token_ids[0, 10:] = PLACEHOLDER  # the host does not know the token of the last step
            tap.before_forward(step, token_info)
            assert tap.is_idle == ("early_exit_layers" not in strategy.list_hooks())
            decoder(torch.empty(len(members) + 1, WIDTH, device=DEVICE))
            tap.after_forward(step, token_info)
            logits = torch.empty(len(members) + 1, VOCAB, device=DEVICE)
            scores = runner.before_sampling(step, logits, token_info)
            assert (scores.shape, scores.device) == (logits.shape, DEVICE)
            sampled = torch.empty(len(members) + 1, 1, dtype=torch.int32, device=DEVICE)
            info = runner.after_sampling(step, sampled, token_info)
        assert runner.states.get("folded")["support"].device == DEVICE
        values = {"logprob": 0.5, "text_logprobs": {"yes": 0.5, "no": 0.5}}
        values |= {"grounding": 0.5} if names else {}
        assert info.resolve() == {
            "row-0": {"changed": False, **values},
            f"row-{len(members)}": {"changed": False},
        }
