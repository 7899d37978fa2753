"""What every registered strategy must do with its parameters."""

from __future__ import annotations

import math
from typing import Any

import annotated_types
import pytest
from pydantic import ValidationError

from decoding.registry import strategies
from decoding.strategy import Strategy
from tests.decoding.strategies.registered import NEUTRAL, every_strategy, extreme, limits


def test_every_strategy_has_neutral_parameters() -> None:
    assert set(NEUTRAL) == set(strategies())


@every_strategy
def test_every_field_is_described_and_bounded(kind: type[Strategy]) -> None:
    for name, field in kind.model_fields.items():
        assert field.description, name
        values = [bound for bound in limits(kind, name).values() if isinstance(bound, int | float)]
        if field.annotation in (int, float):
            assert len(values) == 2, f"{name} lacks a bound"
        if field.annotation in (str, str | None):
            assert any(isinstance(bound, annotated_types.MaxLen) for bound in field.metadata), f"{name} may be endless"


@every_strategy
def test_values_out_of_bounds_are_refused(kind: type[Strategy]) -> None:
    for name, field in kind.model_fields.items():
        wrong: list[Any] = [[], {}]
        if field.annotation in (int, float):
            bounds = limits(kind, name)
            wrong += [bounds["least"] - 1, bounds["most"] + 1, math.nan, math.inf, -math.inf, "many", None]
        for value in wrong:
            with pytest.raises(ValidationError):
                kind.model_validate({name: value})


@every_strategy
def test_unknown_fields_are_refused(kind: type[Strategy]) -> None:
    with pytest.raises(ValidationError, match="gama"):
        kind.model_validate({"gama": 1})


@every_strategy
def test_parameters_cannot_be_changed(kind: type[Strategy]) -> None:
    for name in kind.model_fields:
        with pytest.raises(ValidationError):
            setattr(kind(), name, 1)


@every_strategy
def test_json_round_trip_rebuilds_an_equal_strategy(kind: type[Strategy]) -> None:
    for parameters in ({}, NEUTRAL[kind.name], extreme(kind, top=True), extreme(kind, top=False)):
        strategy = kind(**parameters)
        assert kind.model_validate_json(strategy.model_dump_json()) == strategy
