"""Selects a request's strategies: from the body, else the model's suffix, else the server's default."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic_core import from_json

from decoding.errors import BadRequest
from server.errors import ModelNotFound
from server.schemas.normalized_request import Decoding

if TYPE_CHECKING:
    from decoding.strategy import Strategy


@dataclass(frozen=True, slots=True)
class ModelSuffix:
    """The suffix of a model's name, such as `agla+vhr:agla.alpha=1`.

    Attributes:
        text: The suffix as sent.
        names: The names of the stack.
        parameters: Parameters by strategy. They are valid.
    """

    text: str
    names: str
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)


def resolve_stack(model: str, decoding: Decoding, served_name: str, default: str) -> tuple[Strategy, ...]:
    """Build the strategies that a request selects.

    Args:
        model: The request's model, with or without a suffix.
        decoding: The request's `decoding` field.
        served_name: The name of the served model.
        default: The server's default strategy.

    Returns:
        The stack, outermost first.

    Raises:
        BadRequest: Body and suffix disagree, or a strategy or its parameters are invalid.
    """
    from decoding import registry

    body, suffix = decoding.strategy, parse_model_suffix(model, served_name)
    if suffix is None:
        return registry.build(default if body is None else body, decoding.parameters)
    if body is not None and body != suffix.names:
        message = "The body and the suffix of the model name different strategies."
        raise BadRequest(message, param="decoding.strategy")
    return registry.build(suffix.names, _merge_parameters(suffix, decoding.parameters))


def _merge_parameters(suffix: ModelSuffix, body: dict[str, Any]) -> dict[str, Any]:
    """Merge the parameters of suffix and body.

    Returns:
        The parameters by strategy.

    Raises:
        BadRequest: A parameter has two values.
    """
    merged: dict[str, Any] = {**suffix.parameters, **body}
    for strategy, values in suffix.parameters.items():
        if not isinstance(others := body.get(strategy, {}), dict):
            continue  # reported with the other errors of its value
        for name, value in values.items():
            if name in others and others[name] != value:
                message = f"The body and the suffix of the model set different values of {strategy}.{name}."
                raise BadRequest(message, param=f"decoding.{strategy}.{name}")
        merged[strategy] = {**values, **others}
    return merged


def resolve_check(decoding: Decoding, stack: tuple[Strategy, ...]) -> Strategy | None:
    """Build the check that a request enables.

    Args:
        decoding: The request's `decoding` field.
        stack: The request's strategies.

    Returns:
        The check. None without one, and where a strategy of the stack sends the claims.

    Raises:
        BadRequest: An option is invalid, or belongs to a strategy of the stack.
    """
    if not decoding.wants_check:
        return None
    from decoding import registry
    from decoding.claims.claim_check import ClaimCheck

    options = decoding.check if isinstance(decoding.check, dict) else {}
    check = registry.parse_parameters(ClaimCheck, options)
    for strategy in stack:
        if strategy.sends_claims:
            for option in options:
                message = f"'{strategy.name}' checks the answer itself. Use decoding.{strategy.name}.{option}."
                raise BadRequest(message, param=f"decoding.check.{option}")
            return None
    return check


def parse_model_suffix(model: str, served_name: str) -> ModelSuffix | None:
    """Parse the suffix of a model's name: a stack, and its parameters after a second colon.

    The parameters of a single strategy need no prefix: `onlyseen-tiny:agla:alpha=1,beta=0.3`. Others name their
    strategy: `onlyseen-tiny:agla+vhr:agla.alpha=1`. Values are JSON or plain words.

    Returns:
        The suffix, None for the plain name.

    Raises:
        ModelNotFound: The name is another model's, or the suffix names no valid stack of strategies.
    """
    from decoding import registry

    name, colon, text = model.partition(":")
    if name != served_name:
        raise ModelNotFound(f"There is no such model. This server has '{served_name}'.", param="model")
    if not colon:
        return None
    names, second_colon, settings = text.partition(":")
    try:
        stack = registry.parse_stack(names)
        suffix = ModelSuffix(text, names, _parse_settings(settings, stack) if second_colon else {})
        if suffix.parameters:
            registry.build(names, suffix.parameters)
    except BadRequest as error:
        raise ModelNotFound(f"There is no such model. {error.message}", param="model") from None
    return suffix


def _parse_settings(text: str, stack: list[str]) -> dict[str, dict[str, Any]]:
    """Parse `alpha=1,beta=0.3`, or `agla.alpha=1` for a stack of several strategies.

    The labels of `onlyseen-eval`, which is installed without the server, have the same form. A test compares both.

    Returns:
        The parameters by strategy.

    Raises:
        BadRequest: A setting has another form, or a parameter has two values.
    """
    parameters: dict[str, dict[str, Any]] = {}
    for setting in _split_at_commas(text):
        key, equals, value = setting.partition("=")
        strategy, dot, name = key.rpartition(".")
        if not equals or not name or (not dot and len(stack) > 1):
            form = "name=value" if len(stack) == 1 else f"{stack[0]}.name=value"
            raise BadRequest(f"The setting '{setting}' must have the form {form}.", param="model")
        values = parameters.setdefault(strategy if dot else stack[0], {})
        if name in values:
            raise BadRequest(f"The suffix sets '{key}' twice.", param="model")
        values[name] = _parse_value(value)
    return parameters


def _split_at_commas(text: str) -> list[str]:
    """Split at commas outside of brackets and double quotes."""
    pieces, depth = [""], 0
    for part in re.findall(r'"(?:\\.|[^"\\])*"|.', text, re.DOTALL):
        depth += (part in "[{") - (part in "]}")
        if part == "," and depth <= 0:
            pieces.append("")
        else:
            pieces[-1] += part
    return pieces


def _parse_value(text: str) -> Any:
    """Parse a JSON value. Other text is a string."""
    try:
        return from_json(text, allow_inf_nan=False)
    except ValueError:
        return text
