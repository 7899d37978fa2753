"""What the study asks, and by what a setting of `auto` is chosen."""

import math

from bench.auto_tuning import Trial, settings
from bench.study import PARTS, VOTERS
from eval.recipe import recipes

REGISTERED = ["plain", "agla", "mvp", "vcd"]


def test_a_part_asks_what_it_can_ask_of_all_that_is_registered() -> None:
    asked = {part.name: part.of(REGISTERED) for part in PARTS}
    assert asked["pope-greedy"] == asked["pope-sampled"] == REGISTERED
    assert asked["chair-greedy"] == asked["chair-sampled"] == [name for name in REGISTERED if name not in VOTERS]


def test_stacks_stand_beside_what_they_are_made_of() -> None:
    asked = next(part for part in PARTS if part.name == "pope-stacks").of(REGISTERED)
    assert asked[0] == "plain"
    for stack in (each for each in asked if "+" in each):
        assert set(stack.split("+")) <= set(asked)


def test_a_setting_is_worth_its_least_margin_unless_it_is_dear() -> None:
    assert Trial("auto", [0.5, 0.2, 0.4], invented=-1.0, passes=1.9).worth == 0.2
    assert Trial("auto", [0.5, 0.2, 0.4], invented=0.3, passes=1.9).worth == -0.3
    assert Trial("auto", [0.5, 0.2, 0.4], invented=-1.0, passes=2.1).worth == -math.inf
    assert [each.label for each in recipes(",".join(settings()))] == settings()
