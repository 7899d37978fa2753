"""The strategies by name. A pip package adds one through the entry-point group `onlyseen.strategies`; so do we."""

import json
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from itertools import combinations
from typing import Any

from pydantic import ValidationError

from decoding.errors import BadRequest
from decoding.strategy import Strategy

GROUP = "onlyseen.strategies"


@cache
def strategies() -> Mapping[str, type[Strategy]]:
    """Name -> class, sorted by name.

    Raises:
        TypeError: an entry point is no strategy, or is registered under another name than its own.
        ValueError: two packages claim one name.
    """
    found: dict[str, type[Strategy]] = {}
    for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        strategy = point.load()
        if not (isinstance(strategy, type) and issubclass(strategy, Strategy) and strategy.name == point.name):
            raise TypeError(f"Entry point '{point.name} = {point.value}' is not a Strategy named '{point.name}'.")
        if found.get(point.name, strategy) is not strategy:
            raise ValueError(f"Two packages claim the strategy name '{point.name}'; uninstall one.")
        found[point.name] = strategy
    return found


def summary(strategy: type[Strategy]) -> str:
    """What it does, in a line: its file's first, or its own where the file has others beside it."""
    module = sys.modules[strategy.__module__]
    beside = [each for each in vars(module).values() if is_of(each, module.__name__)]
    text = (module.__doc__ if beside == [strategy] else None) or strategy.__doc__ or ""
    return text.strip().partition("\n")[0]


def is_of(value: Any, module: str) -> bool:
    return isinstance(value, type) and issubclass(value, Strategy) and value.__module__ == module


def build(names: str, parameters: Mapping[str, Any]) -> tuple[Strategy, ...]:
    """`"agla+vhr"` and `{"agla": {"alpha": 1.0}}` -> the stack, outermost first.

    Raises:
        BadRequest: as `composed`, or an unknown parameter, a value out of bounds, parameters of a strategy that is not
            named.
    """
    wanted = composed(names)
    for name in parameters:
        if name not in wanted:
            hint = f"parameters go under the name of a strategy of '{names}', as in decoding.{wanted[0]}.{name}"
            raise BadRequest(f"Unknown field '{name}': {hint}.", param=f"decoding.{name}")
    return tuple(one(name, parameters.get(name, {})) for name in wanted)


def composed(names: str) -> list[str]:
    """`"agla+vhr"` -> its names, outermost first.

    Raises:
        BadRequest: an unknown name, one that is said twice, or two strategies that do not compose.
    """
    wanted = names.split("+")
    for name in wanted:
        if name not in strategies():
            known = ", ".join(strategies())
            raise BadRequest(f"Unknown strategy '{name}'. Known: {known}.", param="decoding.strategy")
    if len(set(wanted)) < len(wanted):
        raise BadRequest(f"'{names}' names a strategy twice.", param="decoding.strategy")
    for outer, inner in combinations(wanted, 2):
        if (reason := refusal(outer, inner)) is not None:
            raise BadRequest(f"'{outer}' cannot stand outside '{inner}': {reason}.", param="decoding.strategy")
    return wanted


def one(name: str, parameters: Any) -> Strategy:
    try:
        # As the JSON it came as: a boolean or a string is no number, a list may be a tuple.
        return strategies()[name].model_validate_json(json.dumps(parameters), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(["decoding", name, *map(str, first["loc"])])
        raise BadRequest(f"{field}: {first['msg']}.", param=field) from None


def refusal(outer: str, inner: str) -> str | None:
    """Why the one cannot stand outside the other; None where it can."""
    return strategies()[inner].refuses(strategies()[outer])


def label(stack: tuple[Strategy, ...]) -> str:
    return "+".join(strategy.name for strategy in stack)
