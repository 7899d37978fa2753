"""Registry of the strategies by name.

A pip package adds a strategy through the entry-point group `onlyseen.strategies`. So does this repository.
"""

from __future__ import annotations

import json
import re
import sys
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from itertools import combinations
from typing import Any

import structlog
from pydantic import ValidationError

from decoding.errors import MAX_SHOWN_NAME, BadRequest, StrategyFailed
from decoding.strategy import Strategy
from decoding.text.json_size import is_larger

GROUP = "onlyseen.strategies"
MAX_PARAMETERS_SIZE = 20_000  # of one strategy, in the unit of `is_larger`
NAME = re.compile(r"[\w.-]+")  # names are joined by "+", and follow ":" in model names and "/" in branch names

log = structlog.get_logger(__name__)


class InvalidEntryPoint(Exception):
    """An entry point does not lead to a usable strategy. The message is a clause, as in "its name is ..."."""


@dataclass(frozen=True, slots=True)
class Registry:
    """Result of loading all entry points."""

    strategies: dict[str, type[Strategy]] = field(default_factory=dict)  # sorted by name
    broken: dict[str, str] = field(default_factory=dict)  # name -> sentence that names the package and the reason


@cache
def load_registry() -> Registry:
    """Load the entry points of all installed packages.

    An entry point that cannot be loaded is skipped, so that a package which is broken does not stop the server. The log
    has a warning, and a request for its strategy is refused with the reason.

    Returns:
        The strategies, and the entry points that were skipped.
    """
    points: defaultdict[str, dict[str, EntryPoint]] = defaultdict(dict)
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        points[point.name][point.value] = point  # an editable install may list an entry point twice
    registry = Registry()
    for name, candidates in points.items():
        packages = " and ".join(sorted({f"'{get_package(point)}'" for point in candidates.values()}))
        try:
            registry.strategies[name] = load_strategy(name, list(candidates.values()))
        except (Exception, SystemExit) as error:
            reason = str(error) if isinstance(error, InvalidEntryPoint) else describe_import_error(error)
            registry.broken[name] = f"Strategy '{name}' of package {packages} cannot be loaded: {reason}."
            log.warning("strategy_not_loaded", strategy=name, package=packages, reason=reason, exc_info=error)
    return registry


def list_strategies() -> Mapping[str, type[Strategy]]:
    """Return the strategies that could be loaded, sorted by name."""
    return load_registry().strategies


def load_strategy(name: str, points: list[EntryPoint]) -> type[Strategy]:
    """Load and check the class of an entry point.

    Args:
        name: Name of the entry points.
        points: Entry points of that name with different values.

    Returns:
        The class.

    Raises:
        InvalidEntryPoint: Several packages use the name, or the class is not a usable strategy of that name.
    """
    first, *others = (point.load() for point in points)
    if any(other is not first for other in others):
        raise InvalidEntryPoint("several classes are registered under this name; uninstall the packages of all but one")
    value = points[0].value
    if not (isinstance(first, type) and issubclass(first, Strategy)):
        raise InvalidEntryPoint(f"'{value}' is not a subclass of Strategy")
    if (found := getattr(first, "name", None)) != name:
        raise InvalidEntryPoint(f"'{value}' has the name '{found}' instead of '{name}'")
    if not NAME.fullmatch(name):
        raise InvalidEntryPoint("a name consists of letters, digits, '_', '.' and '-'")
    if not isinstance(getattr(first, "paper", None), str):
        raise InvalidEntryPoint(f"'{value}' does not define `paper`")
    try:
        first.model_json_schema()
        first()
    except Exception as error:
        message = f"'{value}' cannot be built with default parameters ({type(error).__name__})"
        raise InvalidEntryPoint(message) from error
    return first


def get_package(point: EntryPoint) -> str:
    """Return the name of the distribution that declares an entry point."""
    return point.dist.name if point.dist else point.module.partition(".")[0]


def describe_import_error(error: BaseException) -> str:
    """Describe an exception of an import. Its text may hold paths, so that only its type and a module are named."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"there is no module '{error.name}'"
    return f"its import raises {type(error).__name__}"


def get_summary(strategy_class: type[Strategy]) -> str:
    """Return one line of documentation.

    It is the first line of the module if the class is its only strategy, and of the class otherwise.
    """
    module = sys.modules[strategy_class.__module__]
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Strategy)]
    is_alone = [each for each in classes if each.__module__ == module.__name__] == [strategy_class]
    text = (module.__doc__ if is_alone else None) or strategy_class.__doc__ or ""
    return text.strip().partition("\n")[0]


def build(names: str, parameters: Mapping[str, Any]) -> tuple[Strategy, ...]:
    """Build a stack from `"agla+vhr"` and `{"agla": {"alpha": 1.0}}`.

    Returns:
        The strategies, outermost first.

    Raises:
        BadRequest: The stack or a parameter is not valid, or parameters are given for a strategy that is not named.
    """
    stack = parse_stack(names)
    for name in parameters:
        if name not in stack:
            name = name[:MAX_SHOWN_NAME]
            hint = f"parameters go under the name of a strategy of '{names}', as in decoding.{stack[0]}.{name}"
            raise BadRequest(f"Unknown field '{name}': {hint}.", param=f"decoding.{name}")
    return tuple(build_strategy(name, parameters.get(name, {})) for name in stack)


def parse_stack(names: str) -> list[str]:
    """Split `"agla+vhr"` into names.

    Returns:
        The names, outermost first.

    Raises:
        BadRequest: A name is unknown, broken or repeated, or two strategies do not compose.
    """
    stack = names.split("+")
    for name in stack:
        if name not in list_strategies():
            unknown = f"Unknown strategy '{name}'. Known: {', '.join(list_strategies())}."
            raise BadRequest(load_registry().broken.get(name, unknown), param="decoding.strategy")
    if len(set(stack)) < len(stack):
        raise BadRequest(f"'{names}' names a strategy twice.", param="decoding.strategy")
    for outer, inner in combinations(stack, 2):
        if (reason := find_incompatibility(outer, inner)) is not None:
            raise BadRequest(f"'{outer}' cannot stand outside '{inner}': {reason}.", param="decoding.strategy")
    return stack


def build_strategy(name: str, parameters: Any) -> Strategy:
    """Build one strategy from its JSON parameters. A parameter that is not valid raises `BadRequest`."""
    return parse_parameters(list_strategies()[name], parameters)


def parse_parameters(strategy_class: type[Strategy], parameters: Any) -> Strategy:
    """Build a strategy of a class from its JSON parameters.

    Returns:
        The strategy.

    Raises:
        BadRequest: A parameter is unknown or out of bounds, or the parameters are too large.
        StrategyFailed: A validator of the strategy raised another exception than pydantic expects.
    """
    if is_larger(parameters, MAX_PARAMETERS_SIZE):
        param = f"decoding.{strategy_class.name}"
        raise BadRequest(f"{param} has more than {MAX_PARAMETERS_SIZE} characters.", param=param)
    try:
        # Strict JSON: a boolean or a string is not a number, and a list may be a tuple.
        return strategy_class.model_validate_json(json.dumps(parameters), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = ".".join(["decoding", strategy_class.name, *(str(step)[:MAX_SHOWN_NAME] for step in first["loc"])])
        raise BadRequest(f"{param}: {first['msg']}.", param=param) from None
    except Exception as error:  # of a validator
        raise StrategyFailed(strategy_class.name, f"failed on its parameters: {type(error).__name__}") from error


def find_incompatibility(outer: str, inner: str) -> str | None:
    """Return the reason why `outer` cannot stand outside `inner`, or None. The inner strategy decides.

    Raises:
        StrategyFailed: The inner strategy raised an exception.
    """
    try:
        return list_strategies()[inner].incompatible_with(list_strategies()[outer])
    except Exception as error:
        raise StrategyFailed(inner, f"failed in `incompatible_with`: {type(error).__name__}") from error


def format_stack(stack: tuple[Strategy, ...]) -> str:
    """Join the names of a stack, as in `"agla+vhr"`."""
    return "+".join(strategy.name for strategy in stack)
