"""The strategies of `--strategies`: a stack, outermost first, with parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue

from eval.errors import EvaluationError

Parameters = dict[str, dict[str, JsonValue]]


def _sort_parameters(parameters: Parameters) -> Parameters:
    return {name: dict(sorted(parameters[name].items())) for name in sorted(parameters) if parameters[name]}


class StackSpec(BaseModel):
    """A stack of strategies with the parameters that are set, such as `agla+vhr:agla.alpha=1.0`.

    The parameters of a single strategy need no prefix: `agla:alpha=1.0`.

    Attributes:
        stack: Names of the strategies, outermost first.
        parameters: Values by strategy and parameter.
    """

    model_config = ConfigDict(frozen=True)

    stack: tuple[str, ...]
    parameters: Annotated[Parameters, AfterValidator(_sort_parameters)] = {}

    @property
    def name(self) -> str:
        """The stack without parameters, such as `agla+vhr`."""
        return "+".join(self.stack)

    @property
    def label(self) -> str:
        """The stack with parameters, in the form that `parse_specs` reads."""
        single = len(self.stack) == 1
        settings = [
            f"{key if single else f'{strategy}.{key}'}={_format_value(value)}"
            for strategy, values in self.parameters.items()
            for key, value in values.items()
        ]
        return f"{self.name}:{','.join(settings)}" if settings else self.name

    @property
    def is_plain(self) -> bool:
        """Whether this is plain decoding."""
        return self.stack == ("plain",)

    @property
    def decoding(self) -> dict[str, JsonValue]:
        """The value of `decoding` in a request."""
        return {"strategy": self.name, **self.parameters}

    def replace_strategy(self, strategy: str, others: Mapping[str, Mapping[str, JsonValue]]) -> StackSpec:
        """Replace one strategy by others.

        Args:
            strategy: The strategy to replace.
            others: Parameters by strategy, outermost first. An empty mapping removes the strategy.

        Returns:
            The new stack, `plain` if nothing is left.
        """
        stack = [each for name in self.stack for each in (others if name == strategy else [name])]
        unchanged = {name: values for name, values in self.parameters.items() if name != strategy}
        added = {name: dict(values) for name, values in others.items()}
        return StackSpec(stack=tuple(stack) or ("plain",), parameters=unchanged | added)


PLAIN = StackSpec(stack=("plain",))


def parse_specs(text: str) -> list[StackSpec]:
    """Parse a comma-separated list of stacks, such as `plain,agla:alpha=1.0,beta=0.3,vcd`.

    A piece that only sets a value belongs to the stack before it, so the example has three stacks. Values are JSON or
    plain words. A comma inside brackets or double quotes belongs to the value: `dola:layers=[2,4]`.

    Args:
        text: The list.

    Returns:
        The stacks, without duplicates.

    Raises:
        EvaluationError: The text cannot be parsed.
    """
    pieces: list[str] = []
    for piece in _split_at_commas(text):
        if "=" in piece and ":" not in piece.partition("=")[0]:
            if not pieces:
                raise EvaluationError(f"--strategies: '{piece}' sets a value before any strategy is named.")
            pieces[-1] += ("," if ":" in pieces[-1] else ":") + piece
        else:
            pieces.append(piece)
    if not pieces:
        raise EvaluationError("--strategies: name at least one, for example plain,agla.")
    specs = [parse_spec(piece) for piece in pieces]
    return list({spec.label: spec for spec in specs}.values())


def parse_spec(text: str) -> StackSpec:
    """Parse one stack, such as `agla+vhr:agla.alpha=1.0`.

    Args:
        text: The stack.

    Returns:
        The parsed stack.

    Raises:
        EvaluationError: A name is missing or repeated, or a parameter has no value or names another strategy.
    """
    name, _, settings = text.partition(":")
    stack = tuple(part.strip() for part in name.split("+"))
    if not all(stack):
        raise EvaluationError(f"--strategies: '{text}' has a strategy without a name.")
    if len(set(stack)) < len(stack):
        raise EvaluationError(f"--strategies: '{text}' names a strategy twice.")
    parameters: Parameters = {}
    for setting in _split_at_commas(settings):
        key, equals, value = setting.partition("=")
        strategy, dot, field = key.strip().rpartition(".")
        if not equals or not field or (not dot and len(stack) > 1):
            expected = f"{stack[0]}.{key}=..." if len(stack) > 1 else "name=value"
            raise EvaluationError(f"--strategies: '{setting}' in '{text}' must have the form {expected}.")
        strategy = strategy if dot else stack[0]
        if strategy not in stack:
            raise EvaluationError(
                f"--strategies: '{text}' sets a parameter of '{strategy}', which is not in the stack."
            )
        parameters.setdefault(strategy, {})[field] = _parse_value(value.strip())
    return StackSpec(stack=stack, parameters=parameters)


def _split_at_commas(text: str) -> list[str]:
    """Split at commas outside of brackets and double quotes, and drop empty pieces."""
    pieces, depth = [""], 0
    for part in re.findall(r'"(?:\\.|[^"\\])*"|.', text, re.DOTALL):
        depth += (part in "[{") - (part in "]}")
        if part == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += part
    return [piece for piece in map(str.strip, pieces) if piece]


def _format_value(value: JsonValue) -> str:
    """Format a value so that `_parse_value` returns it."""
    is_plain_word = (
        isinstance(value, str)
        and _parse_value(value) == value
        and value == value.strip()
        and not set('",[]{}') & {*value}
    )
    return str(value) if is_plain_word else json.dumps(value, ensure_ascii=False)


def _parse_value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value
