import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint, PathDistribution
from pathlib import Path
from typing import Any

import pytest
from pydantic import field_validator
from structlog.testing import capture_logs

from decoding import registry
from decoding.errors import BadRequest, StrategyFailed
from decoding.registry import GROUP, build, format_stack, list_strategies
from decoding.strategies.agla import AGLA
from decoding.strategies.attention.vhr import VHR
from decoding.strategies.plain import Plain
from decoding.strategy import Strategy

PUBLISHED = {"plain", "truncate", "sharpen", "vcd", "agla", "vhr", "vdgd"}


class Impostor(Strategy):
    """Has the name of another strategy."""

    name = "plain"
    paper = "none"


class Unbuildable(Strategy):
    """Has a parameter without a default."""

    name = "unbuildable"
    paper = "none"
    weight: float


class Distribution(PathDistribution):
    """Metadata of a package that is not installed."""

    def __init__(self, name: str) -> None:
        super().__init__(Path())
        self._name = name

    @property
    def name(self) -> str:
        return self._name


def entry_point(name: str, value: str, package: str = "some-package", group: str = GROUP) -> EntryPoint:
    point = EntryPoint(name, value, group)
    vars(point).update(dist=Distribution(package))
    return point


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[EntryPoint]]:
    """Return a list that replaces the installed entry points. Fill it before the registry is first read."""
    points: list[EntryPoint] = []
    monkeypatch.setattr(registry, "entry_points", lambda group: [point for point in points if point.group == group])
    registry.load_registry.cache_clear()
    yield points
    registry.load_registry.cache_clear()


def test_own_strategies_are_entry_points() -> None:
    assert set(list_strategies()) >= PUBLISHED
    assert all(kind.name == name for name, kind in list_strategies().items())


def test_stack_is_built_outermost_first() -> None:
    assert build("agla+vhr", {"agla": {"alpha": 1.0}}) == (AGLA(alpha=1.0), VHR())
    assert format_stack(build("vhr+agla", {})) == "vhr+agla"
    assert build("plain", {}) == (Plain(),)
    assert format_stack(build("sid+zoomeye+vhr", {})) == "sid+zoomeye+vhr"  # outside, it acts on its own branch alone


@pytest.mark.parametrize(
    ("names", "parameters", "param", "text"),
    [
        ("magic", {}, "decoding.strategy", "Unknown strategy 'magic'. Known: adaiat, agla"),
        ("", {}, "decoding.strategy", "Unknown strategy ''"),
        ("agla+", {}, "decoding.strategy", "Unknown strategy ''"),
        ("agla vhr", {}, "decoding.strategy", "Unknown strategy"),
        ("AGLA", {}, "decoding.strategy", "Unknown strategy 'AGLA'"),
        ("agla+vhr+agla", {}, "decoding.strategy", "twice"),
        ("agla+mvp", {}, "decoding.strategy", "'agla' cannot stand outside 'mvp': mvp "),
        ("zoomeye+vhr+mvp", {}, "decoding.strategy", "'vhr' cannot stand outside 'mvp'"),
        ("paint+zoomeye", {}, "decoding.strategy", "'paint' cannot stand outside 'zoomeye': "),
        ("vhr+zoomeye", {}, "decoding.strategy", "'vhr' cannot stand outside 'zoomeye'"),
        ("vhr+agla+zoomeye", {}, "decoding.strategy", "'vhr' cannot stand outside 'zoomeye'"),
        ("auto", {}, "decoding.strategy", "Unknown strategy 'auto'. Known: adaiat, agla"),
        ("agla", {"vhr": {}}, "decoding.vhr", "Unknown field 'vhr'"),
        ("agla", {"alpha": 2}, "decoding.alpha", "decoding.agla.alpha"),
        ("agla", {"agla": {"gama": 1}}, "decoding.agla.gama", "decoding.agla.gama"),
        ("agla", {"agla": {"alpha": -1}}, "decoding.agla.alpha", "greater than or equal to 0"),
        ("agla+vhr", {"vhr": {"outliers": "all"}}, "decoding.vhr.outliers", "'population'"),
        ("agla", {"agla": 5}, "decoding.agla", "decoding.agla"),
        ("agla", {"agla": None}, "decoding.agla", "decoding.agla"),
    ],
)
def test_invalid_stack_is_refused_by_field(names: str, parameters: dict[str, Any], param: str, text: str) -> None:
    with pytest.raises(BadRequest) as refused:
        build(names, parameters)
    assert refused.value.param == param
    assert text in refused.value.message


def test_strategy_of_another_package_is_found(installed: list[EntryPoint]) -> None:
    installed += [
        entry_point("vhr", "decoding.strategies.attention.vhr:VHR"),
        entry_point("agla", "decoding.strategies.agla:AGLA"),
        entry_point("agla", "decoding.strategies.agla:AGLA", group="some.other.group"),
    ]
    assert list(list_strategies()) == ["agla", "vhr"]


def test_entry_point_may_be_listed_twice(installed: list[EntryPoint]) -> None:
    """An editable install leaves its metadata in two places on the path."""
    installed += [entry_point("plain", "decoding.strategies.plain:Plain")] * 2
    assert list(list_strategies()) == ["plain"]


def test_name_of_two_packages_is_refused(installed: list[EntryPoint]) -> None:
    """Neither is taken, because a user could not know which of the two it is."""
    installed += [
        entry_point("plain", "decoding.strategies.plain:Plain", "onlyseen"),
        entry_point("plain", f"{__name__}:Impostor", "impostor"),
        entry_point("vhr", "decoding.strategies.attention.vhr:VHR", "onlyseen"),
    ]
    assert list(list_strategies()) == ["vhr"]
    with pytest.raises(BadRequest, match="of package 'impostor' and 'onlyseen' cannot be loaded: several classes"):
        build("plain", {})


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("absent", "no.such.module:Thing", "there is no module 'no'"),
        ("absent", "decoding.strategies.plain:Thing", "its import raises AttributeError"),
        ("simple", "decoding.strategies.plain:Plain", "has the name 'plain' instead of 'simple'"),
        ("pass", "decoding.errors:BadRequest", "'decoding.errors:BadRequest' is not a subclass of Strategy"),
        ("f", "math:floor", "'math:floor' is not a subclass of Strategy"),
        ("base", "decoding.strategy:Strategy", "has the name 'None' instead of 'base'"),
        ("unbuildable", f"{__name__}:Unbuildable", "cannot be built with default parameters (ValidationError)"),
    ],
)
def test_broken_entry_point_is_skipped_and_named(
    installed: list[EntryPoint], name: str, value: str, reason: str
) -> None:
    installed += [
        entry_point(name, value, "broken-package"),
        entry_point("vhr", "decoding.strategies.attention.vhr:VHR"),
    ]
    with capture_logs() as logs:
        assert list(list_strategies()) == ["vhr"]
    (event,) = logs
    assert (event["log_level"], event["strategy"], event["package"]) == ("warning", name, "'broken-package'")
    assert reason in event["reason"]
    with pytest.raises(BadRequest) as refused:
        build(f"vhr+{name}", {})
    assert refused.value.param == "decoding.strategy"
    assert refused.value.message.startswith(f"Strategy '{name}' of package 'broken-package' cannot be loaded: ")
    assert reason in refused.value.message
    assert build("vhr", {}) == (VHR(),)


class Faulty(Strategy):
    """Fails outside of its hooks."""

    name = "faulty"
    paper = "none"
    alpha: float = 1.0

    @field_validator("alpha")
    @classmethod
    def _check_alpha(cls, alpha: float) -> float:
        return 1 / alpha

    @classmethod
    def incompatible_with(cls, outer: type[Strategy]) -> str | None:
        raise KeyError("/some/path")


@pytest.mark.parametrize(
    ("names", "parameters", "problem"),
    [
        ("faulty", {"faulty": {"alpha": 0}}, "failed on its parameters: ZeroDivisionError"),
        ("vhr+faulty", {}, "failed in `incompatible_with`: KeyError"),
    ],
)
def test_exception_of_a_strategy_names_it(
    installed: list[EntryPoint], names: str, parameters: dict[str, Any], problem: str
) -> None:
    installed += [
        entry_point("faulty", f"{__name__}:Faulty", "faulty-package"),
        entry_point("vhr", "decoding.strategies.attention.vhr:VHR"),
    ]
    with pytest.raises(StrategyFailed) as failed:
        build(names, parameters)
    assert failed.value.message == f"Strategy 'faulty' {problem}."
    assert build("vhr", {}) == (VHR(),)


@pytest.mark.parametrize("value", [True, "2", None, [2.0], {"a": 1}, float("nan"), float("inf")])
def test_parameter_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(BadRequest) as refused:
        registry.build("agla", {"agla": {"alpha": value}})
    assert refused.value.param == "decoding.agla.alpha"


@pytest.mark.parametrize(
    "value", ["é" * 9_000_000, ["é" * 30] * 1000, {"é" * 900: {"é" * 19_200: 1}}, [10**4000] * 6], ids=lambda _: ""
)
def test_large_parameters_are_refused_before_they_are_read(value: Any) -> None:
    list_strategies()  # loads the packages
    started_at = time.thread_time()
    with pytest.raises(BadRequest, match="more than 20000 characters") as refused:
        build("vcd", {"vcd": {"alpha": value}})
    assert time.thread_time() - started_at < 0.02
    assert refused.value.param == "decoding.vcd"


@pytest.mark.parametrize("parameters", [{"x" * 1000: {}}, {"vcd": {"x" * 1000: 1}}])
def test_unknown_name_is_cut(parameters: dict[str, Any]) -> None:
    with pytest.raises(BadRequest) as refused:
        build("vcd", parameters)
    assert "x" * 64 in refused.value.message
    assert "x" * 65 not in refused.value.message + str(refused.value.param)
