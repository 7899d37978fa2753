"""Why an engine cannot run a strategy, in a client's words."""

from collections.abc import Sequence

WHY = {
    "relevance": "the server has no image-text matcher; start it with --matcher",
    "attend": "vLLM computes attention in kernels that nothing can reach into",
    "attention": "vLLM computes attention in kernels that nothing can look into",
    "narrow": "vLLM's caches hold every token of a picture in all layers",
    "exits": "vLLM's models give no logits of their earlier layers",
}


def lacking(needs: Sequence[str]) -> str:
    """As in "it lacks relevance: the server has no image-text matcher; ..."."""
    reasons = [WHY[need] for need in needs if need in WHY]
    return ": ".join([f"it lacks {', '.join(needs)}", *filter(None, ["; ".join(reasons)])])
