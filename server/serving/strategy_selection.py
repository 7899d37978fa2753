"""Selects a request's strategies: from the body, else the model's suffix, else the server's default."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING

import structlog

from decoding.errors import BadRequest
from server.errors import ModelNotFound
from server.schemas.generation_request import Decoding

if TYPE_CHECKING:
    from decoding.pipeline.dry_run import DryRun
    from decoding.strategy import Strategy

log = structlog.get_logger("onlyseen.server")


def resolve_stack(model: str, decoding: Decoding, served_name: str, default: str) -> tuple[Strategy, ...]:
    """Build the strategies that a request selects.

    Args:
        model: the request's model, with or without a suffix.
        decoding: the request's `decoding` field.
        served_name: the name of the served model.
        default: the server's default strategy.

    Returns:
        The stack, outermost first.

    Raises:
        BadRequest: body and suffix disagree, or a strategy or its parameters are invalid.
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
        decoding: the request's `decoding` field.
        stack: the request's strategies.

    Returns:
        The check. None without one, and where a strategy of the stack sends the claims.

    Raises:
        BadRequest: an option is invalid, or belongs to a strategy of the stack.
    """
    if not decoding.wants_check:
        return None
    from decoding import registry
    from decoding.claims.check_strategy import Check

    options = decoding.check if isinstance(decoding.check, dict) else {}
    check = registry.parse_parameters(Check, options)
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
        ModelNotFound: the name is another model's, or the suffix names no valid stack of strategies.
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


def estimate_rows(stack: Iterable[Strategy], choices: int) -> int:
    """Estimate the batch rows of a request from dry runs of its strategies. Slow at first: call it in a thread."""
    results = [try_dry_run(type(strategy)) for strategy in stack]
    return choices * (1 + sum(len(result.branches) for result in results if result))


@cache
def try_dry_run(strategy: type[Strategy]) -> DryRun | None:
    """Run a strategy with its default parameters on a blank image, or return None if it fails. The result is kept."""
    from decoding.pipeline.dry_run import dry_run

    try:
        return dry_run(strategy())
    except Exception as error:  # a third-party strategy that fails must not remove the others from the list
        log.warning("dry_run_failed", strategy=strategy.name, exc_info=error)
        return None
