"""Parsing and formatting of stacks."""

from __future__ import annotations

import pytest

from eval.errors import EvaluationError
from eval.runs.stack_spec import Parameters, parse_specs

SPECS: dict[str, list[tuple[str, Parameters]]] = {
    "plain,agla:alpha=1.0,beta=0.3,vcd": [("plain", {}), ("agla", {"agla": {"alpha": 1.0, "beta": 0.3}}), ("vcd", {})],
    "dola:layers=[2, 4],alpha=1,plain": [("dola", {"dola": {"layers": [2, 4], "alpha": 1}}), ("plain", {})],
    'zoomeye:cues="a cup, a dog",depth=2': [("zoomeye", {"zoomeye": {"cues": "a cup, a dog", "depth": 2}})],
    r'code:prompt="say \"no, [\"",vcd': [("code", {"code": {"prompt": 'say "no, ["'}}), ("vcd", {})],
    "agla+vhr:vhr.alpha=2,agla.text=a dog": [("agla+vhr", {"vhr": {"alpha": 2}, "agla": {"text": "a dog"}})],
    'agla:text="2"': [("agla", {"agla": {"text": "2"}})],
}


@pytest.mark.parametrize("text", SPECS)
def test_parse_specs_reads_names_and_parameters(text: str) -> None:
    assert [(each.name, dict(each.parameters)) for each in parse_specs(text)] == SPECS[text]


@pytest.mark.parametrize("text", SPECS)
def test_labels_can_be_parsed(text: str) -> None:
    found = parse_specs(text)
    assert parse_specs(",".join(each.label for each in found)) == found


def test_parse_specs_splits_several_stacks() -> None:
    labels = [
        each.label for each in parse_specs("plain, agla:alpha=1.0,beta=0.3,vcd,agla+vhr:vhr.alpha=2,agla:text=a dog")
    ]
    assert labels == ["plain", "agla:alpha=1.0,beta=0.3", "vcd", "agla+vhr:vhr.alpha=2", "agla:text=a dog"]
    assert [each.label for each in parse_specs(",".join(labels))] == labels


def test_a_value_before_any_strategy_is_refused() -> None:
    with pytest.raises(EvaluationError, match=r"'layers=\[2,4\]' sets a value before any strategy"):
        parse_specs("layers=[2,4],dola")
