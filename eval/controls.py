"""Matched controls: what a strategy with branches comes to when its branches say what the main row says.

A contrast z_f = sum of weighted branches, kept where p(w) >= beta max p, is then z times the sum of the weights: a
temperature and a plausibility cut. `truncate` is the cut alone, `sharpen` the cut and the temperature. What a strategy
gains over them came from its branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import JsonValue

from eval.catalogue import Catalogue
from eval.recipe import Recipe


class Left(NamedTuple):
    """What branches that agree leave of a strategy: the sum of its weights, and its cut (0: none)."""

    scale: float = 1.0
    beta: float = 0.0


Values = Mapping[str, JsonValue]

# A strategy that is not listed is taken for a contrast whose weights add up to 1, with the cut `beta` if it has one.
LEFT: Mapping[str, Callable[[Values], Left]] = {
    "agla": lambda values: Left(1 + number(values["alpha"]), number(values["beta"])),
    "code": lambda values: Left(),  # its cut grows with what the branches disagree about
}


def left(name: str, values: Values) -> Left:
    if name in LEFT:
        return LEFT[name](values)
    beta = values.get("beta")
    return Left() if beta is None else Left(beta=number(beta))


def number(value: JsonValue) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{value!r} is no number")


def controls(recipe: Recipe, catalogue: Catalogue, *, greedy: bool) -> list[Recipe]:
    """`recipe` in full. A cut and a temperature leave the likeliest token where it is, so that under greedy decoding
    the matched control is the stack without the strategy, and for a strategy alone it is plain decoding."""
    found = [
        control
        for name in recipe.stack
        if catalogue.branches(name)
        for control in matched(
            recipe, name, Left() if greedy else left(name, recipe.parameters.get(name, {})), catalogue
        )
    ]
    return list({control.label: control for control in found}.values())


def matched(recipe: Recipe, name: str, rest: Left, catalogue: Catalogue) -> list[Recipe]:
    known = {entry.name for entry in catalogue.data} - set(recipe.stack)
    chosen = []
    if rest.beta and "truncate" in known:
        chosen.append(recipe.but(name, "truncate", {"beta": rest.beta}))
    if rest.scale != 1 and "sharpen" in known:
        chosen.append(recipe.but(name, "sharpen", {"scale": rest.scale, "beta": rest.beta}))
    return chosen if rest != Left() else [recipe.but(name, None, {})]
