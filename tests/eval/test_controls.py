"""What a strategy is held against: its cut and its temperature without its branch."""

import pytest

from eval.catalogue import Catalogue, catalogue
from eval.controls import controls
from eval.recipe import recipe
from tests.eval.fake_server import STRATEGIES, entry

SAMPLED = {
    "agla": ["truncate:beta=0.5", "sharpen:beta=0.5,scale=3.0"],
    "agla:alpha=0,beta=0.2": ["truncate:beta=0.2"],
    "agla+vhr": [
        "truncate+vhr:truncate.beta=0.5,vhr.alpha=2.0",
        "sharpen+vhr:sharpen.beta=0.5,sharpen.scale=3.0,vhr.alpha=2.0",
    ],
    "vcd": ["truncate:beta=0.1"],
    "vcd:beta=0": ["plain"],  # no cut, and weights that add up to 1: nothing is left
    "code": ["plain"],  # its cut is nothing where its branches agree
    "uncut": ["plain"],
    # Both act on the main row besides, and go on doing so beside their controls.
    "pai": ["truncate+pai:pai.alpha=0.2,pai.beta=0.1,pai.gamma=1.0,truncate.beta=0.1"],
    "pai:gamma=1": [],
    "auto+vhr": [
        "truncate+auto+vhr:auto.beta=0.1,auto.blind=0.0,auto.heads_by=1.5,auto.local=0.0,auto.noise=0.0,"
        "truncate.beta=0.1,vhr.alpha=2.0"
    ],
    "vhr": [],
    "truncate": [],
}


@pytest.fixture
def known() -> Catalogue:
    more = [
        entry("code", 1, alpha=1.0, beta=1.0),
        entry("uncut", 1, alpha=1.0),
        entry("pai", 1, alpha=0.2, gamma=1.1, beta=0.1),
        entry("auto", 3, blind=0.5, noise=1.0, local=0.25, heads_by=1.5, beta=0.1),
    ]
    return catalogue({"data": [*STRATEGIES, *more]})


@pytest.mark.parametrize("text", SAMPLED)
def test_under_sampling(known: Catalogue, text: str) -> None:
    found = controls(known.full(recipe(text)), known, greedy=False)
    assert [each.label for each in found] == SAMPLED[text]


@pytest.mark.parametrize("text", ["agla", "vcd", "code", "uncut"])
def test_greedy(known: Catalogue, text: str) -> None:
    """A cut and a temperature leave the likeliest token where it is."""
    assert [each.label for each in controls(known.full(recipe(text)), known, greedy=True)] == ["plain"]


def test_greedy_what_a_strategy_does_to_the_main_row_stays_in_its_control(known: Catalogue) -> None:
    found = controls(known.full(recipe("pai")), known, greedy=True)
    assert [each.label for each in found] == ["pai:alpha=0.2,beta=0.1,gamma=1.0"]
    assert controls(found[0], known, greedy=True) == []
