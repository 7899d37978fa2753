"""The three doors through which a request chooses its strategy: body before model suffix before server default."""

from __future__ import annotations

from typing import TYPE_CHECKING

from decoding.errors import BadRequest
from server.decoding_field import Decoding
from server.errors import ModelNotFound

if TYPE_CHECKING:
    from decoding.strategy import Strategy


def suffix_of(model: str, served: str) -> str | None:
    """`onlyseen-tiny:agla+vhr` -> `agla+vhr`; the bare name has none.

    Raises:
        ModelNotFound: another model, or a suffix that names no strategy, or some that do not compose.
    """
    from decoding import registry

    name, colon, suffix = model.partition(":")
    if name != served:
        raise ModelNotFound(f"There is no such model. This server has '{served}'.", param="model")
    if not colon:
        return None
    try:
        registry.composed(suffix)
    except BadRequest as error:
        raise ModelNotFound(f"There is no such model. {error.message}", param="model") from None
    return suffix


def chosen(model: str, decoding: Decoding | None, served: str, default: str) -> tuple[Strategy, ...]:
    """The stack of strategies, outermost first.

    Raises:
        ModelNotFound: the model or its suffix is not known.
        BadRequest: body and suffix disagree, or the strategy or its parameters are refused.
    """
    from decoding import registry

    decoding = decoding or Decoding()
    body, suffix = decoding.strategy, suffix_of(model, served)
    if body is not None and suffix is not None and body != suffix:
        message = "The body and the suffix of the model name different strategies."
        raise BadRequest(message, param="decoding.strategy")
    named = body if body is not None else suffix if suffix is not None else default
    return registry.build(named, decoding.parameters)
