"""Reasons why an engine cannot run a strategy."""

from __future__ import annotations

from collections.abc import Sequence, Set

from decoding.errors import Unsupported
from decoding.tensor_hooks import TensorHooks

REASONS = {
    "relevance": "the server has no image-text matcher; start it with --matcher",
    "edit_attention_scores": "vLLM computes attention in kernels that do not expose attention scores",
    "attention": "vLLM computes attention in kernels that do not expose attention weights",
    "vision_attention": "it needs a vision tower with a class token, as LLaVA's, and the transformers engine",
    "keep_image_tokens": "image tokens can be dropped inside LLaVA models only, and not in vLLM",
    "early_exit_layers": "vLLM's models do not expose logits of earlier layers",
}


def describe_missing(needs: Sequence[str]) -> str:
    """Describe missing capabilities, as in "it lacks relevance: the server has no image-text matcher; ..."."""
    reasons = [REASONS[need] for need in needs if need in REASONS]
    return ": ".join([f"it lacks {', '.join(needs)}", *filter(None, ["; ".join(reasons)])])


def require_capabilities(strategy: TensorHooks, needs: Set[str], capabilities: Set[str]) -> None:
    """Check that an engine has the capabilities that a strategy needs.

    Raises:
        Unsupported: The engine lacks one.
    """
    if missing := sorted(needs - capabilities):
        message = f"The engine cannot run '{strategy.name}': {describe_missing(missing)}."
        raise Unsupported(message, param="decoding.strategy", code="unsupported")


def require_hooks(stack: Sequence[TensorHooks], capabilities: Set[str]) -> None:
    """Check that an engine runs all tensor hooks of a stack, and raise `Unsupported` otherwise."""
    for strategy in stack:
        # An engine without lazy branches runs them in every step, which does not change the output.
        require_capabilities(strategy, strategy.list_hooks() - {"needs_branches"}, capabilities)
