"""The registry of gangs and the members that travel into the engine core. No vLLM is needed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from decoding.errors import Unsupported
from decoding.registry import build
from decoding.requests import MAIN
from decoding.strategy import Strategy
from decoding.vllm_engine.core.gangs import COUNTER_HELP, GangCounters, GangRegistry
from decoding.vllm_engine.member import Member, ProbeSpec, StateUpdate, StrategySpec, build_stack


def request(name: str) -> SimpleNamespace:
    return SimpleNamespace(request_id=name)


def test_gang_is_complete_with_all_members_and_the_main_one_is_first() -> None:
    gangs = GangRegistry()
    for number, name in enumerate(("a/one", MAIN, "a/two")):
        gang = gangs.add(request(name), Member("g", name, size=3))
        assert gang.is_complete == (number == 2)
    assert gang.request_ids == [MAIN, "a/one", "a/two"]
    assert gangs.get_gang("a/one") is gang
    assert gangs.get_gang("unknown") is None


def test_request_ids_expand_to_their_gangs() -> None:
    gangs = GangRegistry()
    for gang in ("g", "h"):
        for name in (MAIN, "a/one"):
            gangs.add(request(f"{gang}:{name}"), Member(gang, name, size=2))
    assert gangs.expand(["g:a/one", "unknown"]) == {"g:main", "g:a/one", "unknown"}
    gangs.remove("g:main")
    assert gangs.get_gang("g:a/one") is None
    assert [gang.id for gang in gangs] == ["h"]
    assert len(gangs) == 1


def test_member_survives_extra_args() -> None:
    vcd, vhr = build("vcd+vhr", {"vcd": {"alpha": 0.3}})
    member = Member(
        gang="g",
        name=MAIN,
        size=2,
        is_single_step=True,
        stack=(StrategySpec.from_strategy(vcd), StrategySpec.from_strategy(vhr)),
        branches=("vcd/noisy",),
        states={"vhr": "state-1"},
        first_tokens={"Yes": [1, 2]},
        forced_token_ids=(5,),
        grounding_branch="vcd/noisy",
        state_update=StateUpdate(StrategySpec.from_strategy(vcd), "state-2"),
        probe=ProbeSpec(StrategySpec.from_strategy(vhr), main="with_image", layerwise=True, handle="state-3"),
    )
    extra_args = json.loads(json.dumps(member.to_extra_args()))
    received = Member.from_sampling_params(SimpleNamespace(extra_args=extra_args))
    assert received == member
    assert build_stack(received.stack) == (vcd, vhr)
    assert build_stack(received.stack) is build_stack(member.stack)


@pytest.mark.parametrize("params", [None, SimpleNamespace(extra_args=None), SimpleNamespace(extra_args={"x": 1})])
def test_requests_without_our_extra_args_have_no_member(params: object) -> None:
    assert Member.from_sampling_params(params) is None


def test_unregistered_strategy_has_no_spec() -> None:
    class WithoutEntryPoint(Strategy):
        name = "unregistered"
        paper = "none"

    with pytest.raises(Unsupported, match="not registered"):
        StrategySpec.from_strategy(WithoutEntryPoint())


def test_every_counter_has_a_help_text() -> None:
    assert COUNTER_HELP.keys() == GangCounters().as_dict().keys()
