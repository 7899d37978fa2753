"""Selects a request's strategies: from the body, else the model's suffix, else the server's default."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import structlog

from decoding.errors import BadRequest
from server.errors import ModelNotFound
from server.schemas.normalized_request import Decoding

if TYPE_CHECKING:
    from decoding.pipeline.dry_run import DryRun
    from decoding.strategy import Strategy

log = structlog.get_logger("onlyseen.server")

MAX_DRY_RUNS = 256  # results that are kept; parameters have at most 20,000 characters
DEFAULTS = "{}"  # parameters of a strategy that has none but defaults
MAX_DRY_RUN_REQUESTS = 300  # of one dry run. With some parameters `zoomeye` makes thousands
DRY_RUN_LOCK = threading.Lock()  # one at a time: a dry run keeps its requests, with crops of an image


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


def estimate_rows(
    stack: Sequence[Strategy],
    choices: int,
    *,
    grounding: bool = False,
    cache_salt: str | None = None,
    rows_at_once: int | None = None,
) -> int:
    """Estimate the batch rows that a request takes at a time, from dry runs of its strategies.

    Slow at first: call it in a thread.

    Args:
        stack: Strategies, outermost first, a check included.
        choices: Choices of all prompts.
        grounding: Whether a branch without the image runs for the grounding.
        cache_salt: Separates the dry runs that are kept, whose parameters other API keys could guess by their time.
        rows_at_once: Rows that the request may take. Only as many choices count as fit into them, at least one.

    Returns:
        The estimate. A strategy whose requests depend on the image or the answer may take more or fewer rows. One whose
        dry run fails, or makes too many requests, counts with its default parameters.
    """
    if rows_at_once is not None and choices > 1:
        rows_of_choice = estimate_rows(stack, 1, grounding=grounding, cache_salt=cache_salt)
        choices = min(choices, max(1, rows_at_once // rows_of_choice))
    rows, branches = 1, 0
    for strategy in reversed(stack):
        with DRY_RUN_LOCK:
            parameters = strategy.model_dump_json(exclude_defaults=True)
            result = try_dry_run(type(strategy), parameters, None if parameters == DEFAULTS else cache_salt)
            result = result or try_dry_run(type(strategy))
        if result is None:
            continue
        branches += len(result.branches)
        rows = max(rows * max(1, result.extra_rows), 1 + branches)  # its extra requests run through the inner ones
        if result.reads_drafts:  # each choice has a draft of its own
            rows *= choices
    return max(rows, choices * (1 + branches + grounding))


@lru_cache(MAX_DRY_RUNS)
def try_dry_run(
    strategy_class: type[Strategy], parameters: str = DEFAULTS, cache_salt: str | None = None
) -> DryRun | None:
    """Run a strategy on a blank image, or return None if it fails. The result is kept.

    Args:
        strategy_class: Class of the strategy.
        parameters: Its parameters other than the defaults, as JSON.
        cache_salt: The result is kept for requests with the same salt.

    Returns:
        Its needs and costs.
    """
    from decoding.pipeline.dry_run import dry_run

    try:
        return dry_run(strategy_class.model_validate_json(parameters), MAX_DRY_RUN_REQUESTS)
    except Exception as error:  # a third-party strategy that fails must not remove the others from the list
        log.warning("dry_run_failed", strategy=strategy_class.name, exc_info=error)
        return None
