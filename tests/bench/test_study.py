"""Tests of the study's runs."""

from bench.quality.study_spec import PARTS, VOTERS

REGISTERED = ["plain", "agla", "mvp", "vcd"]


def test_part_selects_the_strategies_that_can_take_part() -> None:
    strategies = {part.name: part.select_strategies(REGISTERED) for part in PARTS}
    assert strategies["pope-greedy"] == strategies["pope-sampled"] == REGISTERED
    assert (
        strategies["chair-greedy"] == strategies["chair-sampled"] == [name for name in REGISTERED if name not in VOTERS]
    )


def test_stack_parts_include_the_members_of_their_stacks() -> None:
    strategies = next(part for part in PARTS if part.name == "pope-stacks").select_strategies(REGISTERED)
    assert strategies[0] == "plain"
    for stack in (each for each in strategies if "+" in each):
        assert set(stack.split("+")) <= set(strategies)
