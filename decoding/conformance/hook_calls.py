"""Calls of tensor hooks by the rules, whose failures name the hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from decoding.strategy import Strategy, TensorHooks

Problems = Iterator[str]
Rule = Callable[[type[Strategy]], Problems]


class HookError(Exception):
    """A hook raised an exception. The message names the hook."""


def call(strategy: TensorHooks, hook: str, *arguments: Any) -> Any:
    """Call a hook.

    Returns:
        The result of the hook.

    Raises:
        HookError: The hook raises.
    """
    try:
        return getattr(strategy, hook)(*arguments)
    except Exception as error:
        raise HookError(f"`{hook}` raised {type(error).__name__}: {error}") from error
