"""The bookkeeping of gangs and what travels with their members; no vLLM needed."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from decoding.ask import MAIN
from decoding.errors import Unsupported
from decoding.strategy import Strategy
from decoding.vllm_engine.gangs import Gangs
from decoding.vllm_engine.member import Digest, Member, Probing, Spelled
from tests.decoding.hf_engine.asking import stack


def request(name: str) -> SimpleNamespace:
    return SimpleNamespace(request_id=name)


def test_a_gang_is_complete_when_all_have_come_and_its_main_one_stands_first() -> None:
    gangs = Gangs()
    for number, name in enumerate(("a/one", MAIN, "a/two")):
        gang = gangs.join(request(name), Member("g", name, size=3))
        assert gang.is_complete == (number == 2)
    assert gang.ids == [MAIN, "a/one", "a/two"]
    assert gangs.of("a/one") is gang
    assert gangs.of("stranger") is None


def test_whoever_is_named_brings_the_others_along() -> None:
    gangs = Gangs()
    for gang in ("g", "h"):
        for name in (MAIN, "a/one"):
            gangs.join(request(f"{gang}:{name}"), Member(gang, name, size=2))
    assert gangs.together(["g:a/one", "stranger"]) == {"g:main", "g:a/one", "stranger"}
    gangs.forget("g:main")
    assert gangs.of("g:a/one") is None
    assert [gang.id for gang in gangs] == ["h"]
    assert len(gangs) == 1


def test_a_member_survives_the_journey_to_the_engine_core() -> None:
    (vcd,) = stack("vcd", vcd={"alpha": 0.3})
    (vhr,) = stack("vhr")
    member = Member(
        gang="g",
        name=MAIN,
        size=2,
        whole=True,
        stack=(Spelled.of(vcd), Spelled.of(vhr)),
        branches=("vcd/noisy",),
        memories={"vhr": "memory-1"},
        choices={"Yes": [1, 2]},
        begin=(5,),
        compare="vcd/noisy",
        digest=Digest(Spelled.of(vcd), "memory-2"),
        probing=Probing(Spelled.of(vhr), main="seeing", layerwise=True, handle="memory-3"),
    )
    journey = json.loads(json.dumps(member.spell()))
    assert Member.of(SimpleNamespace(extra_args=journey)) == member
    assert [spelled.build() for spelled in member.stack] == [vcd, vhr]


@pytest.mark.parametrize("params", [None, SimpleNamespace(extra_args=None), SimpleNamespace(extra_args={"x": 1})])
def test_other_requests_are_members_of_nothing(params: object) -> None:
    assert Member.of(params) is None


def test_a_strategy_that_is_not_registered_cannot_travel() -> None:
    class Stranger(Strategy):
        name = "stranger"
        paper = "none"

    with pytest.raises(Unsupported, match="not registered"):
        Spelled.of(Stranger())
