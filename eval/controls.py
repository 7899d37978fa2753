"""Matched controls: what a strategy with branches comes to when its branches say what the main row says.

A contrast z_f = sum of weighted branches, kept where p(w) >= beta max p, is then z times the sum of the weights: a
temperature and a plausibility cut. `truncate` is the cut alone, `sharpen` the cut and the temperature. What a strategy
gains over them came from its branch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pydantic import JsonValue

from eval.catalogue import Catalogue
from eval.recipe import Recipe

# Sum of the weights; a strategy that is not listed is taken for a contrast whose weights add up to 1.
SCALES: Mapping[str, Callable[[Mapping[str, JsonValue]], float]] = {
    "agla": lambda parameters: 1 + number(parameters["alpha"]),
}


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
        if catalogue.branches(name) and (parameters := recipe.parameters.get(name, {})).get("beta") is not None
        for control in matched(recipe, name, parameters, catalogue, greedy=greedy)
    ]
    return list({control.label: control for control in found}.values())


def matched(
    recipe: Recipe, name: str, parameters: Mapping[str, JsonValue], catalogue: Catalogue, *, greedy: bool
) -> list[Recipe]:
    if greedy:
        return [recipe.but(name, None, {})]
    known = {entry.name for entry in catalogue.data} - set(recipe.stack)
    beta = parameters["beta"]
    chosen = [recipe.but(name, "truncate", {"beta": beta})] if "truncate" in known else []
    scale = SCALES[name](parameters) if name in SCALES else 1.0
    if scale != 1 and "sharpen" in known:
        chosen.append(recipe.but(name, "sharpen", {"scale": scale, "beta": beta}))
    return chosen
