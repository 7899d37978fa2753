"""Cells of the documentation's tables."""

from __future__ import annotations

import pytest

from decoding.docs_tables import describe_venue, list_deviations, list_effects
from decoding.registry import list_strategies
from decoding.strategies.attention.spin import SPIN
from decoding.strategies.dola import DoLa
from decoding.strategies.plain import Plain
from decoding.strategies.ritual import RITUAL
from decoding.strategy import Strategy

RESULTS = """
<!-- chair-greedy -->
| `plain` | 45.7 [40.3, 51.3] | 12.3 [10.7, 14.0] | 79.2 |
| `vcd` | 40.0<br>-5.7, p = 0.1 | **12.0**<br>-0.3 [-1.0, +0.2], p = 0.5 | 79.0 |
| `vcd:alpha=2` (tuned) | 1.0<br>-1.0 | 2.0<br>-2.0 | 79.0 |
<!-- /chair-greedy -->
<!-- pope-sampled -->
| `vcd` | 90.6<br>+1.6, p = 0.016 | 91.1 |
| `truncate` (control) | **89.9**<br>+0.8, p = 0.001 | 90.4 |
| `vcd` - `truncate` | +0.8 [+0.2, +1.5], p = 0.013 | is better |
| `vcd` - `sharpen` | -0.1, p = 0.8 | does not differ |
<!-- /pope-sampled -->
"""


def test_effects_are_differences_from_plain_and_from_all_controls() -> None:
    assert list_effects("vcd", RESULTS) == [
        "captions, CHAIR_i: -0.3 [-1.0, +0.2], p = 0.5, against `plain`",
        "sampled POPE, accuracy: +0.8 [+0.2, +1.5], p = 0.013, against `truncate`",
        "sampled POPE, accuracy: -0.1, p = 0.8, against `sharpen`",
    ]
    assert list_effects("truncate", RESULTS) == ["sampled POPE, accuracy: +0.8, p = 0.001, against `plain`"]
    assert list_effects("plain", RESULTS) == list_effects("spin", RESULTS) == []


@pytest.mark.parametrize(
    ("strategy_class", "venue"),
    [(SPIN, "EMNLP 2025, arXiv:2505.16411"), (RITUAL, "arXiv:2405.17821"), (Plain, "none")],
)
def test_venue_is_that_of_the_docstring(strategy_class: type[Strategy], venue: str) -> None:
    assert describe_venue(strategy_class) == venue


def test_deviations_are_those_of_the_docstring() -> None:
    introduction, deviations = list_deviations(DoLa)
    assert introduction.endswith("give the code's rule:")
    assert len(deviations) == 4
    assert deviations[-1].endswith("which is 1 by default.")


def test_every_strategy_with_official_code_states_its_licence_and_its_deviations() -> None:
    for name, strategy_class in list_strategies().items():
        if strategy_class.official_code != "none":
            repository, _, licence = strategy_class.official_code.partition(", ")
            assert repository.count("/") == 1, name
            assert licence, name
            assert list_deviations(strategy_class)[1], name
