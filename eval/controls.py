"""Matched controls: what a strategy with branches comes to when its branches say what the main row says.

A contrast z_f = sum of weighted branches, kept where p(w) >= beta max p, is then z times the sum of the weights: a
temperature and a plausibility cut. `truncate` is the cut alone, `sharpen` the cut and the temperature. What a strategy
gains over them came from its branch. One that acts on the main row too stays in its control, with its branches off, and
the cut around it; `auto` itself cuts only in steps that wake its branches, so that its control cuts more often.
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

# What takes the branches, and their cut, out of a strategy that amplifies heads or attention of the main row besides.
OFF: Mapping[str, Values] = {"auto": {"blind": 0.0, "noise": 0.0, "local": 0.0}, "pai": {"gamma": 1.0}}


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
    the matched control is the stack without the strategy, or with its branches off: for most, alone, plain decoding."""
    found: list[Recipe] = []
    for name in recipe.stack:
        values = recipe.parameters.get(name, {})
        stays = branchless(name, values)
        if catalogue.branches(name) and stays != {name: values}:
            rest = Left() if greedy else left(name, values)
            found += [recipe.but(name, {**cut, **stays}) for cut in cuts(recipe, rest, catalogue)]
    return list({control.label: control for control in found}.values())


def branchless(name: str, values: Values) -> dict[str, Values]:
    """What stays of a strategy in its control."""
    return {name: {**values, **OFF[name]}} if name in OFF else {}


def cuts(recipe: Recipe, rest: Left, catalogue: Catalogue) -> list[dict[str, Values]]:
    """What takes the place of the branches, in each control."""
    if rest == Left():
        return [{}]
    known = {entry.name for entry in catalogue.data} - set(recipe.stack)
    chosen: list[dict[str, Values]] = []
    if rest.beta and "truncate" in known:
        chosen.append({"truncate": {"beta": rest.beta}})
    if rest.scale != 1 and "sharpen" in known:
        chosen.append({"sharpen": {"scale": rest.scale, "beta": rest.beta}})
    return chosen
