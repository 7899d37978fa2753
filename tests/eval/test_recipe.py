"""Strategies as they are typed, and as reports call them."""

import pytest

from eval.errors import EvaluationError
from eval.recipe import Parameters, recipes

TYPED: dict[str, list[tuple[str, Parameters]]] = {
    "plain,agla:alpha=1.0,beta=0.3,vcd": [("plain", {}), ("agla", {"agla": {"alpha": 1.0, "beta": 0.3}}), ("vcd", {})],
    "dola:layers=[2, 4],alpha=1,plain": [("dola", {"dola": {"layers": [2, 4], "alpha": 1}}), ("plain", {})],
    'zoomeye:cues="a cup, a dog",depth=2': [("zoomeye", {"zoomeye": {"cues": "a cup, a dog", "depth": 2}})],
    r'code:prompt="say \"no, [\"",vcd': [("code", {"code": {"prompt": 'say "no, ["'}}), ("vcd", {})],
    "agla+vhr:vhr.alpha=2,agla.text=a dog": [("agla+vhr", {"vhr": {"alpha": 2}, "agla": {"text": "a dog"}})],
    'agla:text="2"': [("agla", {"agla": {"text": "2"}})],
}


@pytest.mark.parametrize("text", TYPED)
def test_what_is_typed(text: str) -> None:
    assert [(each.name, dict(each.parameters)) for each in recipes(text)] == TYPED[text]


@pytest.mark.parametrize("text", TYPED)
def test_what_a_report_calls_them_can_be_typed(text: str) -> None:
    found = recipes(text)
    assert recipes(",".join(each.label for each in found)) == found


def test_a_value_before_any_strategy() -> None:
    with pytest.raises(EvaluationError, match=r"'layers=\[2,4\]' gives a value before any strategy"):
        recipes("layers=[2,4],dola")
