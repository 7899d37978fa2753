"""Reasons why an engine cannot run a strategy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType

from decoding.engine import Capability
from decoding.errors import Unsupported
from decoding.tensor_hooks import TensorHooks

REASONS = {
    "relevance": "the server has no image-text matcher; start it with --matcher",
    "attention_statistics": "the server has no statistics of the model's heads; start it with --attention-statistics",
    "vectors": "the server has no folder of steering vectors; start it with --steering-vectors",
    "attention_updates": "the vLLM engine captures the last token of a prompt only",
    "layer_inputs": "the vLLM engine sees what leaves the parts of a layer, and not what enters it",
    "vision_attention": "it needs a vision tower with a class token, as LLaVA's",
    "keep_image_tokens": "the transformers engine drops image tokens inside LLaVA models only",
}
NO_REASONS: Mapping[str, str] = MappingProxyType({})


def describe_missing(needs: Sequence[str], reasons: Mapping[str, str] = NO_REASONS) -> str:
    """Describe missing capabilities, as in "it lacks relevance: the server has no image-text matcher; ...".

    Args:
        needs: The missing capabilities.
        reasons: Capability -> reason why the engine lacks it, in addition to `REASONS`.

    Returns:
        The description. Each reason occurs once.
    """
    known = REASONS | dict(reasons)
    found = dict.fromkeys(known[need] for need in needs if need in known)
    return ": ".join([f"it lacks {', '.join(needs)}", *filter(None, ["; ".join(found)])])


def require_capabilities(
    strategy: TensorHooks, needs: Set[str], capabilities: Set[str], reasons: Mapping[str, str] = NO_REASONS
) -> None:
    """Check that an engine has the capabilities that a strategy needs.

    Args:
        strategy: The strategy.
        needs: Its needs.
        capabilities: Capabilities of the engine.
        reasons: Capability -> reason why the engine lacks it.

    Raises:
        Unsupported: The engine lacks one.
    """
    if missing := sorted(needs - capabilities):
        message = f"The engine cannot run '{strategy.name}': {describe_missing(missing, reasons)}."
        raise Unsupported(message, param="decoding.strategy", code="unsupported")


def require_hooks(
    stack: Sequence[TensorHooks], capabilities: Set[str], reasons: Mapping[str, str] = NO_REASONS
) -> None:
    """Check that an engine runs all tensor hooks of a stack, and raise `Unsupported` otherwise."""
    for strategy in stack:
        # An engine without lazy branches runs them in every step, which does not change the output.
        needs = strategy.list_hooks() - {"needs_branches"} | find_declared_needs(strategy)
        require_capabilities(strategy, needs, capabilities, reasons)


def find_declared_needs(strategy: TensorHooks) -> frozenset[Capability]:
    """Return the capabilities that a strategy needs for the inputs of its hooks that it declares."""
    needs: dict[Capability, bool] = {
        "attention_statistics": strategy.reads_attention_statistics,
        "layer_inputs": strategy.reads_layer_input,
    }
    return frozenset(need for need, is_needed in needs.items() if is_needed)
