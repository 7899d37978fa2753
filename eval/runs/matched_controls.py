"""Matched controls: the remainder of a strategy whose branches give the logits of the main row.

A contrast z_f = sum of weighted branches, restricted to p(w) >= beta max p, then reduces to z times the sum of the
weights. That is a temperature and a plausibility cut. `truncate` is the cut alone, `sharpen` the cut and the
temperature. A gain over both comes from the branch.

A strategy that also acts on the main row stays in its control, with its branches off and the cut around it.

A strategy that derives its rule from the model's own description has a second control: `describe`, which puts the same
description into the prompt and has no rule. A gain over it comes from the rule, not from the additional text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pydantic import JsonValue

from eval.runs.stack_spec import StackSpec
from eval.runs.strategy_catalog import StrategyCatalog


class ControlParams(NamedTuple):
    """The remainder of a contrast: the sum of its weights, and the beta of its cut (0 is no cut)."""

    scale: float = 1.0
    beta: float = 0.0


Values = Mapping[str, JsonValue]

# Default for other strategies: a contrast whose weights add up to 1, with the cut `beta` if it has that parameter.
CONTROL_PARAMS: Mapping[str, Callable[[Values], ControlParams]] = {
    "agla": lambda values: ControlParams(1 + _to_float(values["alpha"]), _to_float(values["beta"])),
    "ritual": lambda values: ControlParams(1 + _to_float(values["alpha"]), _to_float(values["beta"])),
    "code": lambda values: ControlParams(),  # Its cut grows with the disagreement of its branches.
}

# Strategies whose rule reads a description. Their names are also those of the styles of `describe`.
DESCRIBING: frozenset[str] = frozenset({"code", "vdgd"})

# Parameters that turn off the branches and the cut of a strategy that also amplifies attention.
BRANCHES_OFF: Mapping[str, Values] = {"pai": {"gamma": 1.0}}


def build_controls(spec: StackSpec, catalog: StrategyCatalog, *, greedy: bool) -> list[StackSpec]:
    """Build the matched controls of a stack.

    A cut and a temperature do not change the most likely token. So under greedy decoding the control is the stack
    without the strategy, or with its branches off. For most strategies alone this is plain decoding.

    Args:
        spec: The stack with all defaults.
        catalog: The strategies of the server.
        greedy: Whether decoding is greedy.

    Returns:
        The controls, without duplicates. Empty for a stack without branches and descriptions.
    """
    controls: list[StackSpec] = []
    available = {entry.name for entry in catalog.data} - set(spec.stack)
    for name in spec.stack:
        values = spec.parameters.get(name, {})
        if name in DESCRIBING and "describe" in available:
            described = _build_description_values(name, values, catalog)
            controls.append(spec.replace_strategy(name, {"describe": described}))
        remaining = _turn_branches_off(name, values)
        if catalog.count_branches(name) and remaining != {name: values}:
            params = ControlParams() if greedy else _build_control_params(name, values)
            for cut in _cut_strategies(params, available):
                controls.append(spec.replace_strategy(name, {**cut, **remaining}))
    return list({control.label: control for control in controls}.values())


def _build_control_params(name: str, values: Values) -> ControlParams:
    if name in CONTROL_PARAMS:
        return CONTROL_PARAMS[name](values)
    beta = values.get("beta")
    return ControlParams() if beta is None else ControlParams(beta=_to_float(beta))


def _turn_branches_off(name: str, values: Values) -> dict[str, Values]:
    """Return the parameters under which a strategy stays in its control; empty if it does not stay."""
    return {name: {**values, **BRANCHES_OFF[name]}} if name in BRANCHES_OFF else {}


def _build_description_values(name: str, values: Values, catalog: StrategyCatalog) -> Values:
    """Return the parameters with which `describe` asks for the description of a strategy."""
    copied: dict[str, JsonValue] = {"style": name}
    for parameter in ("description_tokens", "description_prompt"):
        default = catalog.find(name).defaults.get(parameter)
        # The style has the default of the prompt. The length has a default of its own.
        if parameter in values and (parameter == "description_tokens" or values[parameter] != default):
            copied[parameter] = values[parameter]
    return copied


def _cut_strategies(params: ControlParams, available: set[str]) -> list[dict[str, Values]]:
    """Return the strategies that replace the branches, one mapping for each control."""
    if params == ControlParams():
        return [{}]
    cuts: list[dict[str, Values]] = []
    if params.beta and "truncate" in available:
        cuts.append({"truncate": {"beta": params.beta}})
    if params.scale != 1 and "sharpen" in available:
        cuts.append({"sharpen": {"scale": params.scale, "beta": params.beta}})
    return cuts


def _to_float(value: JsonValue) -> float:
    if isinstance(value, int | float):
        return float(value)
    raise TypeError(f"{value!r} is not a number")
