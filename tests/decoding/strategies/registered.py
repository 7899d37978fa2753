"""Every registered strategy, its neutral parameters, and the bounds of its fields."""

from __future__ import annotations

from typing import Any

import annotated_types
import pytest
from pydantic import ValidationError

from decoding.registry import strategies
from decoding.strategy import Strategy

every_strategy = pytest.mark.parametrize("kind", strategies().values(), ids=strategies().keys())

# Parameters with which a strategy decodes like the plain model, on the prompt that it ends with.
NEUTRAL: dict[str, dict[str, Any]] = {
    "plain": {},
    "truncate": {"beta": 0},
    "sharpen": {"scale": 1, "beta": 0},
    "vcd": {"alpha": 0, "beta": 0},
    "icd": {"alpha": 0, "beta": 0},
    "m3id": {"decay": 0, "beta": 0},
    "agla": {"alpha": 0, "beta": 0},
    "vhr": {"alpha": 1},
    "sid": {"alpha": 0, "beta": 0},
    "avisc": {"alpha": 0, "beta": 0},
    "paint": {"alpha": 0, "beta": 0},
    "pai": {"alpha": 0, "gamma": 1},
    "dola": {"alpha": 0, "beta": 0},
    "deco": {"alpha": 0, "top_p": 1, "top_k": 0},
    "vdgd": {"truncation": "plausibility", "beta": 1},
    "auto": {"blind": 0, "noise": 0, "local": 0, "heads_by": 1},
    "code": {"alpha": 0, "beta": 0},
    "mvp": {"bottom_up": 0, "top_down": 0, "regular": 0},
    "zoomeye": {"depth": 0},
}


REWORDS = {"vdgd"}  # the question is asked with the description before it, whatever the parameters


def limits(kind: type[Strategy], name: str) -> dict[str, float]:
    """The bounds of a numeric field, as "least" and "most"."""
    found = {}
    for bound in kind.model_fields[name].metadata:
        match bound:
            case annotated_types.Ge(ge=least) | annotated_types.Gt(gt=least):
                found["least"] = least
            case annotated_types.Le(le=most) | annotated_types.Lt(lt=most):
                found["most"] = most
    return found


def extreme(kind: type[Strategy], *, top: bool) -> dict[str, Any]:
    """Every numeric field at, or next to, one end of its bounds."""
    values: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        if field.annotation in (int, float):
            bounds = limits(kind, name)
            end = bounds["most"] if top else bounds["least"]
            inwards = -1 if top else 1
            nudged = end + inwards if field.annotation is int else end + inwards * 1e-3
            values[name] = end if allowed(kind, name, end) else nudged
    return values


def allowed(kind: type[Strategy], name: str, value: float) -> bool:
    try:
        kind.model_validate({name: value})
    except ValidationError:
        return False
    return True
