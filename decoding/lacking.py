"""Why an engine cannot run a strategy, in a client's words."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TYPE_CHECKING

from decoding.errors import Unsupported

if TYPE_CHECKING:
    from decoding.strategy import Strategy

WHY = {
    "relevance": "the server has no image-text matcher; start it with --matcher",
    "attend": "vLLM computes attention in kernels that nothing can reach into",
    "attention": "vLLM computes attention in kernels that nothing can look into",
    "narrow": "tokens can be dropped inside LLaVA models alone, and not in vLLM, whose caches hold all in every layer",
    "exits": "vLLM's models give no logits of their earlier layers",
}


def lacking(needs: Sequence[str]) -> str:
    """As in "it lacks relevance: the server has no image-text matcher; ..."."""
    reasons = [WHY[need] for need in needs if need in WHY]
    return ": ".join([f"it lacks {', '.join(needs)}", *filter(None, ["; ".join(reasons)])])


def require(strategy: Strategy, needs: Set[str], capabilities: Set[str]) -> None:
    """Raises:
    Unsupported: the strategy needs what the engine lacks.
    """
    if missing := sorted(needs - capabilities):
        message = f"The engine cannot run '{strategy.name}': {lacking(missing)}."
        raise Unsupported(message, param="decoding.strategy", code="unsupported")


def require_hooks(stack: Sequence[Strategy], capabilities: Set[str]) -> None:
    """Raises:
    Unsupported: a strategy of the stack acts where the engine cannot let it.
    """
    for strategy in stack:
        # Branches that may sleep can be run in every step: `wakes` only says where they do not matter.
        require(strategy, strategy.hooks() - {"wakes"}, capabilities)
