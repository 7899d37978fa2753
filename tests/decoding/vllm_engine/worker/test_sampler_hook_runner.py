"""The strategies' hooks around the sampler. No vLLM is needed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import structlog
import torch
from torch import Tensor

from decoding.errors import EngineFailed
from decoding.logits_ops import contrast, mask_logits, plausibility_mask
from decoding.registry import load_registry
from decoding.requests import MAIN
from decoding.strategies.vcd import VCD
from decoding.strategy import Step
from decoding.vllm_engine.member import Member, StateUpdate, StrategySpec
from decoding.vllm_engine.worker.newest_tokens import PLACEHOLDER, NewestTokens
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_hook_runner import SamplerHookRunner
from decoding.vllm_engine.worker.step_rows import TokenInfo
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.worker.harness import VOCAB, build_rows, build_specs


def create_runner() -> SamplerHookRunner:
    return SamplerHookRunner(StateStore(1 << 20), torch.device("cpu"))


def draw_logits(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def build_vcd_gang(gang: str, **vcd: Any) -> dict[str, Member]:
    main = Member(gang, MAIN, 2, stack=build_specs("vcd", vcd=vcd), branches=("vcd/noisy",))
    return {MAIN: main, "vcd/noisy": Member(gang, "vcd/noisy", 2)}


def contrast_by_hand(main: Tensor, noisy: Tensor, alpha: float) -> Tensor:
    return mask_logits(contrast(main, noisy, alpha), plausibility_mask(main, VCD().beta))


def test_gangs_of_several_strategies_and_other_requests_share_a_batch() -> None:
    first, second, other = build_vcd_gang("one"), build_vcd_gang("two"), build_vcd_gang("other", alpha=0.5)
    cut = Member("cut", MAIN, 1, stack=build_specs("truncate"))
    step = build_rows(
        first["vcd/noisy"], second[MAIN], None, other[MAIN], first[MAIN], second["vcd/noisy"], other["vcd/noisy"], cut
    )
    given, token_info = draw_logits(8), TokenInfo()
    scores = create_runner().before_sampling(step, given.clone(), token_info)
    assert torch.equal(scores[4], contrast_by_hand(given[4], given[0], 1.0))
    assert torch.equal(scores[1], contrast_by_hand(given[1], given[5], 1.0))
    assert torch.equal(scores[3], contrast_by_hand(given[3], given[6], 0.5))
    assert torch.equal(scores[7], mask_logits(given[7], plausibility_mask(given[7], 0.1)))
    for untouched in (0, 2, 5, 6):
        assert torch.equal(scores[untouched], given[untouched])


def test_gangs_that_differ_in_parameters_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    gangs = [build_vcd_gang(str(n), alpha=n / 8, beta=n / 20, noise_seed=n) for n in range(8)]
    calls, call_logits = list[Step](), VCD.logits

    def record_call(strategy: VCD, step: Step) -> Tensor:
        calls.append(step)
        return call_logits(strategy, step)

    monkeypatch.setattr(VCD, "logits", record_call)
    given = draw_logits(16)
    scores = create_runner().before_sampling(
        build_rows(*(member for gang in gangs for member in gang.values())), given.clone(), {}
    )
    assert len(calls) == 1
    for n in range(8):
        main, noisy = given[2 * n], given[2 * n + 1]
        assert torch.equal(scores[2 * n], mask_logits(contrast(main, noisy, n / 8), plausibility_mask(main, n / 20)))


def test_branches_take_the_main_rows_token() -> None:
    first, second = build_vcd_gang("one"), build_vcd_gang("two")
    step = build_rows(first["vcd/noisy"], None, second[MAIN], first[MAIN], second["vcd/noisy"])
    runner, token_info = create_runner(), TokenInfo()
    runner.before_sampling(step, draw_logits(5), token_info)
    sampled = torch.tensor([[10], [11], [12], [13], [14]], dtype=torch.int32)
    runner.after_sampling(step, sampled, token_info).resolve()
    assert sampled.flatten().tolist() == [13, 11, 12, 13, 12]
    assert set(token_info) == {"row-2", "row-3"}


def test_incomplete_gang_is_left_alone() -> None:
    first = build_vcd_gang("one")
    step = build_rows(first[MAIN], first["vcd/noisy"], is_sampling=[True, False])
    runner, given, token_info = create_runner(), draw_logits(2), TokenInfo()
    assert torch.equal(runner.before_sampling(step, given.clone(), token_info), given)
    sampled = torch.tensor([[1], [2]])
    runner.after_sampling(step, sampled, token_info).resolve()
    assert sampled.flatten().tolist() == [1, 2]
    assert not token_info


def test_rows_may_move_between_steps() -> None:
    first, second, runner = build_vcd_gang("one"), build_vcd_gang("two"), create_runner()
    runner.before_sampling(
        build_rows(first[MAIN], first["vcd/noisy"], second[MAIN], second["vcd/noisy"]), draw_logits(4), {}
    )
    moved = build_rows(second["vcd/noisy"], second[MAIN])
    given = draw_logits(2, seed=1)
    assert torch.equal(runner.before_sampling(moved, given.clone(), {})[1], contrast_by_hand(given[1], given[0], 1.0))


def test_forbidden_tokens_stay_forbidden() -> None:
    first = build_vcd_gang("one")
    given = draw_logits(2)
    given[0, 5:] = -math.inf
    scores = create_runner().before_sampling(build_rows(first[MAIN], first["vcd/noisy"]), given.clone(), {})
    assert (scores[0, 5:] == -math.inf).all()
    assert not scores.isnan().any()


def test_state_update_folds_sampled_steps_only() -> None:
    (vdgd,) = build_specs("vdgd")
    member = Member("g", MAIN, 1, state_update=StateUpdate(vdgd, "state-0"))
    runner, token_info = create_runner(), TokenInfo()
    for step in range(3):
        given = draw_logits(1, seed=step)
        runner.before_sampling(build_rows(member, is_sampling=[step > 0]), given, token_info)
        runner.after_sampling(build_rows(member, is_sampling=[step > 0]), torch.tensor([[3]]), token_info).resolve()
    expected = torch.stack([draw_logits(1, seed=step)[0].log_softmax(-1) for step in (1, 2)]).amax(0)
    assert torch.allclose(runner.states.get("state-0")["support"], expected)
    assert not any("error" in note for note in token_info.values())


def test_state_that_does_not_fit_fails_its_request() -> None:
    (vdgd,) = build_specs("vdgd")
    runner, token_info = SamplerHookRunner(StateStore(max_bytes=100), torch.device("cpu")), TokenInfo()
    step = build_rows(Member("g", MAIN, 1, state_update=StateUpdate(vdgd, "state-0")), None)
    with structlog.testing.capture_logs():
        runner.before_sampling(step, draw_logits(2), token_info)
        runner.after_sampling(step, torch.tensor([[3], [4]]), token_info).resolve()
    assert token_info["row-0"]["error_code"] == "memory_full"
    assert len(runner.states) == runner.states.num_bytes == 0


def test_logits_hook_that_raises_fails_its_own_requests_only(monkeypatch: pytest.MonkeyPatch) -> None:
    (truncate,) = build_specs("truncate")
    good, bad = Member("good", MAIN, 1, stack=(truncate,)), build_vcd_gang("bad")

    def raise_broken(*_: object) -> Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(VCD, "logits", raise_broken)
    token_info = TokenInfo()
    runner = create_runner()
    with structlog.testing.capture_logs():
        step = build_rows(good, bad[MAIN], bad["vcd/noisy"])
        scores = runner.before_sampling(step, draw_logits(3), token_info).clone()
        runner.after_sampling(step, torch.tensor([[3], [4], [5]]), token_info).resolve()
    assert token_info["row-1"] == {
        "error": "Strategy 'vcd' failed: RuntimeError.",
        "strategy": "vcd",
        "problem": "failed: RuntimeError",
    }
    assert "error" not in token_info["row-0"]
    assert (scores[0] == -math.inf).any()


def test_prefix_tokens_are_forced() -> None:
    member, runner = Member("g", MAIN, 1, forced_token_ids=(7, 8)), create_runner()
    for generated, token in enumerate((7, 8, 3)):
        token_info, step = TokenInfo(), build_rows(member, generated=generated)
        runner.before_sampling(step, draw_logits(1), token_info)
        sampled = torch.tensor([[3]])
        runner.after_sampling(step, sampled, token_info).resolve()
        assert sampled.item() == token
        assert token_info["row-0"]["logprob"] == pytest.approx(draw_logits(1)[0].log_softmax(-1)[token].item())


def test_strategy_does_not_receive_lazy_branches_that_it_does_not_need() -> None:
    """The transformers engine does not run them in such steps. Here they run all the same."""
    members: list[Member] = []
    strategies = [build_stack("m3id", m3id={"lazy": True, "beta": beta})[0] for beta in (0.1, 0.2, 0.3)]
    for gang, m3id in zip("abc", strategies, strict=True):
        main = Member(gang, MAIN, 2, stack=(StrategySpec.from_strategy(m3id),), branches=("m3id/blind",))
        members += [main, Member(gang, "m3id/blind", 2)]
    given = draw_logits(6) / 3
    given[0, 7] = 50.0  # certain
    scores = create_runner().before_sampling(build_rows(*members), given.clone(), {})
    assert strategies[0].needs_branches(given[::2]).tolist() == [False, True, True]
    assert scores[0, 7] == given[0, 7]
    assert (scores[0] > -math.inf).sum() == 1
    for row, m3id in zip((2, 4), strategies[1:], strict=True):
        shown = Step(given[row], given[row], {"blind": given[row + 1]}, {}, torch.tensor([0]))
        assert torch.equal(scores[row], m3id.logits(shown))
        assert not torch.equal(scores[row], given[row])


class RenamedVCD(VCD):
    """VCD under another name."""

    name = "renamed"


def test_renamed_strategy_reads_its_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load_registry().strategies, "renamed", RenamedVCD)
    main = Member("gang", MAIN, 2, stack=(StrategySpec.from_strategy(RenamedVCD()),), branches=("renamed/noisy",))
    given, token_info = draw_logits(2), TokenInfo()
    scores = create_runner().before_sampling(
        build_rows(main, Member("gang", "renamed/noisy", 2)), given.clone(), token_info
    )
    assert torch.equal(scores[0], contrast_by_hand(given[0], given[1], 1.0))
    assert not any("error" in info for info in token_info.values())


def test_ruled_out_sequences_are_forbidden_where_they_would_be_completed() -> None:
    member = Member("g", MAIN, 1, ruled_out=((4, 5), (7,)), answer_prefix_length=1)
    step, given = build_rows(member), draw_logits(1)
    for last_token, forbidden in ((4, [5, 7]), (3, [7])):
        step.token_ids[0, -1] = last_token
        scores = create_runner().before_sampling(step, given.clone(), TokenInfo())
        assert (scores[0] == -math.inf).nonzero().flatten().tolist() == forbidden


def test_ruled_out_sequences_are_forbidden_although_the_host_has_placeholders() -> None:
    """Under asynchronous scheduling the host knows only the tokens with which a row has joined the batch."""
    member = Member("g", MAIN, 1, ruled_out=((4, 5), (4, 4, 6), (7,)), answer_prefix_length=1)
    runner, joined, given = create_runner(), [3, 4], draw_logits(1)
    newest: list[int] = []
    for sampled, forbidden in ((None, [5, 7]), (4, [5, 6, 7]), (4, [5, 6, 7]), (9, [7]), (4, [5, 7])):
        newest += [] if sampled is None else [sampled]
        step = build_rows(member, generated=len(newest) + 1)
        step.token_ids[0, -len(newest) - 2 :] = [*joined, *[PLACEHOLDER] * len(newest)]
        if sampled is not None:
            runner.after_sampling(step, torch.tensor([[sampled]]), {})
        scores = runner.before_sampling(step, given.clone(), TokenInfo())
        assert (scores[0] == -math.inf).nonzero().flatten().tolist() == forbidden


def test_step_fails_if_the_newest_tokens_are_not_known() -> None:
    member = Member("g", MAIN, 1, ruled_out=((4, 5),), answer_prefix_length=1)
    step = build_rows(member, generated=1)
    step.token_ids[0, -1] = PLACEHOLDER
    with pytest.raises(EngineFailed, match="newest tokens"):
        create_runner().before_sampling(step, draw_logits(1), TokenInfo())


@pytest.mark.parametrize("end_token_ids", [(), (9, 3)])
def test_state_takes_in_nothing_after_the_end_of_the_answer(end_token_ids: tuple[int, ...]) -> None:
    """Under asynchronous scheduling a step may follow the end token."""
    (vdgd,) = build_specs("vdgd")
    member = Member("g", MAIN, 1, state_update=StateUpdate(vdgd, "state-0", end_token_ids))
    runner = create_runner()
    for number, sampled in enumerate((8, 3, 8, 8)):
        step = build_rows(member, generated=number)
        runner.before_sampling(step, draw_logits(1, seed=number), {})
        info = runner.after_sampling(step, torch.tensor([[sampled]]), {}).resolve()
        assert "error" not in info["row-0"]
    folded = range(2 if end_token_ids else 4)
    expected = torch.stack([draw_logits(1, seed=number)[0].log_softmax(-1) for number in folded]).amax(0)
    assert torch.allclose(runner.states.get("state-0")["support"], expected)


def test_tokens_of_a_row_that_comes_back_to_the_batch_are_those_of_the_host() -> None:
    tokens, cpu = NewestTokens(), torch.device("cpu")
    for token in (1, 2):
        tokens.append({"row": (torch.tensor([token]), 2)})
    assert tokens.fill_in("row", [PLACEHOLDER, PLACEHOLDER], cpu).tolist() == [1, 2]
    assert tokens.fill_in("row", [5, 6], cpu).tolist() == [5, 6]  # after steps without the row
    tokens.append({"row": (torch.tensor([7]), 2)})
    assert tokens.fill_in("row", [6, PLACEHOLDER], cpu).tolist() == [6, 7]
