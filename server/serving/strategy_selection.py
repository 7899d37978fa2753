"""Selects a request's strategies: from the body, else the model's suffix, else the server's default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decoding.errors import BadRequest
from server.errors import ModelNotFound
from server.schemas.normalized_request import Decoding

if TYPE_CHECKING:
    from decoding.strategy import Strategy


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
    if body is not None and suffix is not None and body != suffix:
        message = "The body and the suffix of the model name different strategies."
        raise BadRequest(message, param="decoding.strategy")
    names = body if body is not None else suffix if suffix is not None else default
    return registry.build(names, decoding.parameters)


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


def parse_model_suffix(model: str, served_name: str) -> str | None:
    """Return the suffix: `agla+vhr` for `onlyseen-tiny:agla+vhr`, and None for the plain name.

    Raises:
        ModelNotFound: The name is another model's, or the suffix names no valid stack of strategies.
    """
    from decoding import registry

    name, colon, suffix = model.partition(":")
    if name != served_name:
        raise ModelNotFound(f"There is no such model. This server has '{served_name}'.", param="model")
    if not colon:
        return None
    try:
        registry.parse_stack(suffix)
    except BadRequest as error:
        raise ModelNotFound(f"There is no such model. {error.message}", param="model") from None
    return suffix
