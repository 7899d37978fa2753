"""How an answer is decoded: strategies, outermost first, with their parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, JsonValue

from eval.errors import EvaluationError

Parameters = dict[str, dict[str, JsonValue]]


def _sorted(parameters: Parameters) -> Parameters:
    return {name: dict(sorted(parameters[name].items())) for name in sorted(parameters) if parameters[name]}


class Recipe(BaseModel):
    """`agla+vhr:agla.alpha=1.0`: what was written. A lone strategy's parameters need no owner: `agla:alpha=1.0`."""

    model_config = ConfigDict(frozen=True)

    stack: tuple[str, ...]
    parameters: Annotated[Parameters, AfterValidator(_sorted)] = {}

    @property
    def name(self) -> str:
        return "+".join(self.stack)

    @property
    def label(self) -> str:
        lone = len(self.stack) == 1
        said = [
            f"{key if lone else f'{owner}.{key}'}={written(value)}"
            for owner, values in self.parameters.items()
            for key, value in values.items()
        ]
        return f"{self.name}:{','.join(said)}" if said else self.name

    @property
    def is_plain(self) -> bool:
        return self.stack == ("plain",)

    @property
    def body(self) -> dict[str, JsonValue]:
        """What goes under `decoding` in a request."""
        return {"strategy": self.name, **self.parameters}

    def but(self, strategy: str, others: Mapping[str, Mapping[str, JsonValue]]) -> Recipe:
        """The same with others, outermost first, in the place of one strategy; with none of them, without it."""
        stack = [each for name in self.stack for each in (others if name == strategy else [name])]
        kept = {name: values for name, values in self.parameters.items() if name != strategy}
        placed = {name: dict(values) for name, values in others.items()}
        return Recipe(stack=tuple(stack) or ("plain",), parameters=kept | placed)


PLAIN = Recipe(stack=("plain",))


def recipes(text: str) -> list[Recipe]:
    """`plain,agla:alpha=1.0,beta=0.3,vcd` is three: a piece that only gives a value belongs to the one before it.

    Values are JSON or plain words; a comma within brackets or double quotes is a part of them: `dola:layers=[2,4]`.

    Raises: EvaluationError: it cannot be read.
    """
    pieces: list[str] = []
    for piece in split(text):
        if "=" in piece and ":" not in piece.partition("=")[0]:
            if not pieces:
                raise EvaluationError(f"--strategies: '{piece}' gives a value before any strategy is named.")
            pieces[-1] += ("," if ":" in pieces[-1] else ":") + piece
        else:
            pieces.append(piece)
    if not pieces:
        raise EvaluationError("--strategies: name at least one, for example plain,agla.")
    read = [recipe(piece) for piece in pieces]
    return list({each.label: each for each in read}.values())


def recipe(text: str) -> Recipe:
    name, _, settings = text.partition(":")
    stack = tuple(part.strip() for part in name.split("+"))
    if not all(stack):
        raise EvaluationError(f"--strategies: '{text}' has a strategy without a name.")
    if len(set(stack)) < len(stack):
        raise EvaluationError(f"--strategies: '{text}' names a strategy twice.")
    parameters: Parameters = {}
    for setting in split(settings):
        key, equals, value = setting.partition("=")
        owner, dot, field = key.strip().rpartition(".")
        if not equals or not field or (not dot and len(stack) > 1):
            wanted = f"{stack[0]}.{key}=..." if len(stack) > 1 else "name=value"
            raise EvaluationError(f"--strategies: '{setting}' in '{text}' should read {wanted}.")
        owner = owner if dot else stack[0]
        if owner not in stack:
            raise EvaluationError(f"--strategies: '{text}' sets a parameter of '{owner}', which it does not run.")
        parameters.setdefault(owner, {})[field] = value_of(value.strip())
    return Recipe(stack=stack, parameters=parameters)


def split(text: str) -> list[str]:
    """At commas outside of brackets and double quotes; empty pieces fall away."""
    pieces, depth = [""], 0
    for part in re.findall(r'"(?:\\.|[^"\\])*"|.', text, re.DOTALL):
        depth += (part in "[{") - (part in "]}")
        if part == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += part
    return [piece for piece in map(str.strip, pieces) if piece]


def written(value: JsonValue) -> str:
    """As `value_of` reads it."""
    if isinstance(value, str) and value_of(value) == value and value == value.strip() and not set('",[]{}') & {*value}:
        return value
    return json.dumps(value, ensure_ascii=False)


def value_of(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value
