"""The strategies' hooks on the rows of a step, without vLLM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import structlog
import torch
from torch import Tensor

from decoding.ask import MAIN
from decoding.strategies.vcd import VCD
from decoding.strategy import Step
from decoding.tensors import contrast, only, plausible
from decoding.vllm_engine.member import Digest, Member, Spelled
from decoding.vllm_engine.memories import Memories
from decoding.vllm_engine.mixing import Mixer
from decoding.vllm_engine.rows import Notes, Rows
from tests.decoding.hf_engine.asking import stack

VOCAB = 50


def mixer() -> Mixer:
    return Mixer(Memories(1 << 20), torch.device("cpu"))


def spelled(names: str, **parameters: Any) -> tuple[Spelled, ...]:
    return tuple(Spelled.of(strategy) for strategy in stack(names, **parameters))


def pair(gang: str, **vcd: Any) -> dict[str, Member]:
    main = Member(gang, MAIN, 2, stack=spelled("vcd", vcd=vcd), branches=("vcd/noisy",))
    return {MAIN: main, "vcd/noisy": Member(gang, "vcd/noisy", 2)}


def rows(*members: Member | None, draws: list[bool] | None = None, generated: int = 0) -> Rows:
    count = len(members)
    return Rows(
        ids=[f"row-{number}" for number in range(count)],
        members={number: member for number, member in enumerate(members) if member is not None},
        starts=np.arange(count + 1),
        computed=np.full(count, 10),
        prompts=np.full(count, 10),
        generated=np.full(count, generated),
        draws=np.array(draws or [True] * count),
    )


def logits(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def contrasted(main: Tensor, noisy: Tensor, alpha: float) -> Tensor:
    return only(contrast(main, noisy, alpha), plausible(main, VCD().beta))


def test_gangs_of_several_kinds_and_requests_without_any_share_a_batch() -> None:
    one, two, other = pair("one"), pair("two"), pair("other", alpha=0.5)
    cut = Member("cut", MAIN, 1, stack=spelled("truncate"))
    step = rows(one["vcd/noisy"], two[MAIN], None, other[MAIN], one[MAIN], two["vcd/noisy"], other["vcd/noisy"], cut)
    given, notes = logits(8), Notes()
    mixed = mixer().mix(step, given.clone(), notes)
    assert torch.equal(mixed[4], contrasted(given[4], given[0], 1.0))
    assert torch.equal(mixed[1], contrasted(given[1], given[5], 1.0))
    assert torch.equal(mixed[3], contrasted(given[3], given[6], 0.5))
    assert torch.equal(mixed[7], only(given[7], plausible(given[7], 0.1)))
    for untouched in (0, 2, 5, 6):
        assert torch.equal(mixed[untouched], given[untouched])


def test_gangs_that_differ_in_numbers_and_prompts_share_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    gangs = [pair(str(n), alpha=n / 8, beta=n / 20, noise_seed=n) for n in range(8)]
    calls, own = list[Step](), VCD.logits

    def counted(strategy: VCD, step: Step) -> Tensor:
        calls.append(step)
        return own(strategy, step)

    monkeypatch.setattr(VCD, "logits", counted)
    given = logits(16)
    mixed = mixer().mix(rows(*(member for gang in gangs for member in gang.values())), given.clone(), Notes())
    assert len(calls) == 1
    for n in range(8):
        main, noisy = given[2 * n], given[2 * n + 1]
        assert torch.equal(mixed[2 * n], only(contrast(main, noisy, n / 8), plausible(main, n / 20)))


def test_branches_take_the_main_rows_token() -> None:
    one, two = pair("one"), pair("two")
    step = rows(one["vcd/noisy"], None, two[MAIN], one[MAIN], two["vcd/noisy"])
    mix, notes = mixer(), Notes()
    mix.mix(step, logits(5), notes)
    sampled = torch.tensor([[10], [11], [12], [13], [14]], dtype=torch.int32)
    mix.spread(step, sampled, notes)
    assert sampled.flatten().tolist() == [13, 11, 12, 13, 12]
    assert set(notes) == {"row-2", "row-3"}


def test_a_gang_that_is_not_complete_is_left_alone() -> None:
    one = pair("one")
    step = rows(one[MAIN], one["vcd/noisy"], draws=[True, False])
    mix, given, notes = mixer(), logits(2), Notes()
    assert torch.equal(mix.mix(step, given.clone(), notes), given)
    sampled = torch.tensor([[1], [2]])
    mix.spread(step, sampled, notes)
    assert sampled.flatten().tolist() == [1, 2]
    assert not notes


def test_the_plan_follows_rows_that_move() -> None:
    one, two, mix = pair("one"), pair("two"), mixer()
    mix.mix(rows(one[MAIN], one["vcd/noisy"], two[MAIN], two["vcd/noisy"]), logits(4), Notes())
    moved = rows(two["vcd/noisy"], two[MAIN])
    given = logits(2, seed=1)
    assert torch.equal(mix.mix(moved, given.clone(), Notes())[1], contrasted(given[1], given[0], 1.0))


def test_what_a_grammar_forbids_stays_forbidden() -> None:
    one = pair("one")
    given = logits(2)
    given[0, 5:] = -math.inf
    mixed = mixer().mix(rows(one[MAIN], one["vcd/noisy"]), given.clone(), Notes())
    assert (mixed[0, 5:] == -math.inf).all()
    assert not mixed.isnan().any()


def test_a_digest_folds_what_is_drawn_and_no_prompt_that_is_read_in_pieces() -> None:
    (vdgd,) = spelled("vdgd")
    member, mix, notes = Member("g", MAIN, 1, digest=Digest(vdgd, "memory-0")), mixer(), Notes()
    for step in range(3):
        given = logits(1, seed=step)
        mix.mix(rows(member, draws=[step > 0]), given, notes)
        mix.spread(rows(member, draws=[step > 0]), torch.tensor([[3]]), notes)
    told = torch.stack([logits(1, seed=step)[0].log_softmax(-1) for step in (1, 2)]).amax(0)
    assert torch.allclose(mix.memories.recall("memory-0")["told"], told)
    assert not any("failed" in note for note in notes.values())


def test_a_memory_that_does_not_fit_fails_its_ask() -> None:
    (vdgd,) = spelled("vdgd")
    mix, notes = Mixer(Memories(most_bytes=100), torch.device("cpu")), Notes()
    step = rows(Member("g", MAIN, 1, digest=Digest(vdgd, "memory-0")), None)
    with structlog.testing.capture_logs():
        mix.mix(step, logits(2), notes)
        mix.spread(step, torch.tensor([[3], [4]]), notes)
    assert notes["row-0"]["code"] == "memory_full"
    assert len(mix.memories) == mix.memories.bytes == 0


def test_a_strategy_that_raises_fails_the_asks_that_use_it_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    (truncate,) = spelled("truncate")
    good, bad = Member("good", MAIN, 1, stack=(truncate,)), pair("bad")

    def broken(*_: object) -> Tensor:
        raise RuntimeError("broken")

    monkeypatch.setattr(VCD, "logits", broken)
    notes, mix = Notes(), mixer()
    with structlog.testing.capture_logs():
        mixed = mix.mix(rows(good, bad[MAIN], bad["vcd/noisy"]), logits(3), notes)
    assert "failed" in notes["row-1"]
    assert "row-0" not in notes
    assert (mixed[0] == -math.inf).any()


def test_an_answer_begins_with_what_it_must() -> None:
    member, mix = Member("g", MAIN, 1, begin=(7, 8)), mixer()
    for generated, token in enumerate((7, 8, 3)):
        notes, step = Notes(), rows(member, generated=generated)
        mix.mix(step, logits(1), notes)
        sampled = torch.tensor([[3]])
        mix.spread(step, sampled, notes)
        assert sampled.item() == token
        assert notes["row-0"]["logprob"] == pytest.approx(logits(1)[0].log_softmax(-1)[token].item())


def test_a_strategy_is_not_shown_branches_that_it_does_not_wake() -> None:
    """On the transformers engine they sleep in such steps; here they stand in the batch all the same."""
    members: list[Member] = []
    strategies = [stack("auto", auto={"grounded": 100, "beta": beta})[0] for beta in (0.1, 0.2, 0.3)]
    for gang, auto in zip("abc", strategies, strict=True):  # nothing is settled by the picture alone
        main = Member(gang, MAIN, 2, stack=(Spelled.of(auto),), branches=("auto/blind",))
        members += [main, Member(gang, "auto/blind", 2)]
    given = logits(6) / 3
    given[0, 7] = 50.0  # certain
    mixed = mixer().mix(rows(*members), given.clone(), Notes())
    assert strategies[0].wakes(given[::2]).tolist() == [False, True, True]
    assert torch.equal(mixed[0], given[0])
    for row, auto in zip((2, 4), strategies[1:], strict=True):
        shown = Step(given[row], given[row], {"auto/blind": given[row + 1]}, {}, torch.tensor([0]))
        assert torch.equal(mixed[row], auto.logits(shown))
        assert not torch.equal(mixed[row], given[row])
