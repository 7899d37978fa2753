from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from decoding import registry
from decoding.errors import BadRequest
from decoding.registry import GROUP, build, label, strategies
from decoding.strategies.agla import AGLA
from decoding.strategies.plain import Plain
from decoding.strategies.vhr import VHR
from decoding.strategy import Strategy

PUBLISHED = {"plain", "truncate", "sharpen", "vcd", "agla", "vhr", "vdgd"}


class Impostor(Strategy):
    """Claims a name that is taken."""

    name = "plain"
    paper = "none"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Entry points as if other packages were installed; fill the list before the first look at the registry."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in points if point.group == group])
    strategies.cache_clear()
    yield points
    strategies.cache_clear()


def test_our_own_strategies_come_in_through_the_public_door() -> None:
    assert set(strategies()) >= PUBLISHED
    assert all(kind.name == name for name, kind in strategies().items())


def test_a_stack_is_built_outermost_first() -> None:
    assert build("agla+vhr", {"agla": {"alpha": 1.0}}) == (AGLA(alpha=1.0), VHR())
    assert label(build("vhr+agla", {})) == "vhr+agla"
    assert build("plain", {}) == (Plain(),)
    assert label(build("sid+zoomeye+vhr", {})) == "sid+zoomeye+vhr"  # outside, it acts on its own branch alone


@pytest.mark.parametrize(
    ("names", "parameters", "param", "says"),
    [
        ("magic", {}, "decoding.strategy", "Unknown strategy 'magic'. Known: agla"),
        ("", {}, "decoding.strategy", "Unknown strategy ''"),
        ("agla+", {}, "decoding.strategy", "Unknown strategy ''"),
        ("agla vhr", {}, "decoding.strategy", "Unknown strategy"),
        ("AGLA", {}, "decoding.strategy", "Unknown strategy 'AGLA'"),
        ("agla+vhr+agla", {}, "decoding.strategy", "twice"),
        ("agla+mvp", {}, "decoding.strategy", "'agla' cannot stand outside 'mvp': mvp votes among answers"),
        ("zoomeye+vhr+mvp", {}, "decoding.strategy", "'vhr' cannot stand outside 'mvp'"),
        ("paint+zoomeye", {}, "decoding.strategy", "'paint' cannot stand outside 'zoomeye': what it has measured"),
        ("vhr+zoomeye", {}, "decoding.strategy", "'vhr' cannot stand outside 'zoomeye'"),
        ("auto+agla+zoomeye", {}, "decoding.strategy", "'auto' cannot stand outside 'zoomeye'"),
        ("agla", {"vhr": {}}, "decoding.vhr", "Unknown field 'vhr'"),
        ("agla", {"alpha": 2}, "decoding.alpha", "decoding.agla.alpha"),
        ("agla", {"agla": {"gama": 1}}, "decoding.agla.gama", "decoding.agla.gama"),
        ("agla", {"agla": {"alpha": -1}}, "decoding.agla.alpha", "greater than or equal to 0"),
        ("agla+vhr", {"vhr": {"outliers": "all"}}, "decoding.vhr.outliers", "'population'"),
        ("agla", {"agla": 5}, "decoding.agla", "decoding.agla"),
        ("agla", {"agla": None}, "decoding.agla", "decoding.agla"),
    ],
)
def test_refusals_name_the_field(names: str, parameters: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(BadRequest) as refused:
        build(names, parameters)
    assert refused.value.param == param
    assert says in refused.value.message


def test_a_plugin_is_found_beside_ours(installed: list[EntryPoint]) -> None:
    installed += [
        EntryPoint("vhr", "decoding.strategies.vhr:VHR", GROUP),
        EntryPoint("agla", "decoding.strategies.agla:AGLA", GROUP),
        EntryPoint("agla", "decoding.strategies.agla:AGLA", "some.other.group"),
    ]
    assert list(strategies()) == ["agla", "vhr"]


def test_two_packages_cannot_claim_one_name(installed: list[EntryPoint]) -> None:
    """Nothing is renamed in silence: which of the two would answer to the name?"""
    installed += [
        EntryPoint("plain", "decoding.strategies.plain:Plain", GROUP),
        EntryPoint("plain", f"{__name__}:Impostor", GROUP),
    ]
    with pytest.raises(ValueError, match="Two packages claim the strategy name 'plain'"):
        strategies()


def test_one_package_may_be_listed_twice(installed: list[EntryPoint]) -> None:
    """An editable install leaves its metadata in two places on the path."""
    installed += [EntryPoint("plain", "decoding.strategies.plain:Plain", GROUP)] * 2
    assert list(strategies()) == ["plain"]


@pytest.mark.parametrize(
    ("name", "target"),
    [("simple", "decoding.strategies.plain:Plain"), ("pass", "decoding.errors:BadRequest"), ("f", "math:floor")],
)
def test_an_entry_point_must_be_a_strategy_of_that_name(installed: list[EntryPoint], name: str, target: str) -> None:
    installed.append(EntryPoint(name, target, GROUP))
    with pytest.raises(TypeError, match=f"'{name} = {target}' is not a Strategy named '{name}'"):
        strategies()


@pytest.mark.parametrize("value", [True, "2", None, [2.0], {"a": 1}, float("nan"), float("inf")])
def test_a_number_is_a_number(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        registry.build("agla", {"agla": {"alpha": value}})
    assert refused.value.param == "decoding.agla.alpha"
