"""Matched controls of strategies with branches."""

from __future__ import annotations

import pytest

from eval.runs.matched_controls import build_controls
from eval.runs.stack_spec import parse_spec
from eval.runs.strategy_catalog import StrategyCatalog, parse_catalog
from tests.eval.fake_server import STRATEGIES, catalog_entry

CODE: dict[str, object] = {"alpha": 1.0, "beta": 1.0, "description_tokens": 512, "description_prompt": "See?"}
SAMPLED = {
    "agla": ["truncate:beta=0.5", "sharpen:beta=0.5,scale=3.0"],
    "agla:alpha=0,beta=0.2": ["truncate:beta=0.2"],
    "agla+vhr": [
        "truncate+vhr:truncate.beta=0.5,vhr.alpha=2.0",
        "sharpen+vhr:sharpen.beta=0.5,sharpen.scale=3.0,vhr.alpha=2.0",
    ],
    "vcd": ["truncate:beta=0.1"],
    "vcd:beta=0": ["plain"],  # no cut, and weights that add up to 1
    # Without `describe` on the server, CODE has the first control only: no cut where its branches agree.
    "code": ["plain"],
    "uncut": ["plain"],
    # It also acts on the main row, and does so in its control.
    "ritual": ["truncate:beta=0.1", "sharpen:beta=0.1,scale=4.0"],
    "nolan": ["plain"],
    "pai": ["truncate+pai:pai.alpha=0.2,pai.beta=0.1,pai.gamma=1.0,truncate.beta=0.1"],
    "pai:gamma=1": [],
    "vhr": [],
    "truncate": [],
}


DESCRIBED = {
    "code": ["describe:description_tokens=512,style=code", "plain"],
    "vdgd": ["describe:description_tokens=512,style=vdgd"],
    "vdgd:description_tokens=20": ["describe:description_tokens=20,style=vdgd"],
    "vdgd:description_prompt=Look.": ["describe:description_prompt=Look.,description_tokens=512,style=vdgd"],
    "vdgd+vhr": ["describe+vhr:describe.description_tokens=512,describe.style=vdgd,vhr.alpha=2.0"],
    "describe+vdgd": [],  # the control cannot stand in the stack twice
    "describe": [],
}


@pytest.fixture
def catalog() -> StrategyCatalog:
    extra = [
        catalog_entry("code", 1, **CODE),
        catalog_entry("uncut", 1, alpha=1.0),
        catalog_entry("ritual", 1, alpha=3.0, beta=0.1),
        catalog_entry("nolan", 1, scale=0.8, adaptive=True),
        catalog_entry("pai", 1, alpha=0.2, gamma=1.1, beta=0.1),
    ]
    return parse_catalog({"data": [*STRATEGIES, *extra]})


@pytest.mark.parametrize("text", SAMPLED)
def test_sampled_decoding_has_matched_controls(catalog: StrategyCatalog, text: str) -> None:
    found = build_controls(catalog.with_defaults(parse_spec(text)), catalog, greedy=False)
    assert [each.label for each in found] == SAMPLED[text]


@pytest.mark.parametrize("text", ["agla", "vcd", "code", "uncut"])
def test_the_control_of_greedy_decoding_is_plain(catalog: StrategyCatalog, text: str) -> None:
    """A cut and a temperature do not change the most likely token."""
    assert [each.label for each in build_controls(catalog.with_defaults(parse_spec(text)), catalog, greedy=True)] == [
        "plain"
    ]


def test_edits_of_the_main_row_stay_in_greedy_controls(catalog: StrategyCatalog) -> None:
    found = build_controls(catalog.with_defaults(parse_spec("pai")), catalog, greedy=True)
    assert [each.label for each in found] == ["pai:alpha=0.2,beta=0.1,gamma=1.0"]
    assert build_controls(found[0], catalog, greedy=True) == []


@pytest.fixture
def describing_catalog() -> StrategyCatalog:
    described = {"description_tokens": 512, "description_prompt": "What is there?"}
    extra = [
        catalog_entry("code", 1, **CODE),
        catalog_entry("describe", style="stic", description_tokens=512, description_prompt=None),
        catalog_entry("vdgd", **described),
    ]
    return parse_catalog({"data": [*STRATEGIES, *extra]})


@pytest.mark.parametrize("greedy", [True, False])
@pytest.mark.parametrize("text", DESCRIBED)
def test_rule_about_a_description_has_the_description_as_control(
    describing_catalog: StrategyCatalog, text: str, greedy: bool
) -> None:
    spec = describing_catalog.with_defaults(parse_spec(text))
    found = build_controls(spec, describing_catalog, greedy=greedy)
    assert [each.label for each in found] == DESCRIBED[text]
