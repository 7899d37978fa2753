"""Matched controls: the remainder of a strategy whose branches give the logits of the main row.

A contrast z_f = sum of weighted branches, restricted to p(w) >= beta max p, then reduces to z times the sum of the
weights. That is a temperature and a plausibility cut. `truncate` is the cut alone, `sharpen` the cut and the
temperature. A gain over both comes from the branch.

A strategy that also acts on the main row stays in its control, with its branches off and the cut around it.
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
    "code": lambda values: ControlParams(),  # Its cut grows with the disagreement of its branches.
}

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
        The controls, without duplicates. Empty for a stack without branches.
    """
    controls: list[StackSpec] = []
    for name in spec.stack:
        values = spec.parameters.get(name, {})
        remaining = _turn_branches_off(name, values)
        if catalog.count_branches(name) and remaining != {name: values}:
            params = ControlParams() if greedy else _build_control_params(name, values)
            for cut in _cut_strategies(spec, params, catalog):
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


def _cut_strategies(spec: StackSpec, params: ControlParams, catalog: StrategyCatalog) -> list[dict[str, Values]]:
    """Return the strategies that replace the branches, one mapping for each control."""
    if params == ControlParams():
        return [{}]
    available = {entry.name for entry in catalog.data} - set(spec.stack)
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
