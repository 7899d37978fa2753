"""Grounding of tokens, and log-probabilities of scored texts, as both engines report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor


def score_texts(scores: Tensor, first_tokens: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Sum the probabilities of the tokens with which each scored text can begin.

    Args:
        scores: [vocab] scores of the strategies.
        first_tokens: Scored text -> its first tokens.

    Returns:
        Scored text -> log-probability.
    """
    logprobs = scores.log_softmax(-1)
    return {text: float(logprobs[list(tokens)].logsumexp(-1)) for text, tokens in first_tokens.items()}


def compute_grounding(with_image: Tensor, without_image: Tensor) -> Tensor:
    """Compute the grounding of each token.

    Args:
        with_image: [vocab] logits of the main row.
        without_image: [vocab] logits of the grounding branch.

    Returns:
        [vocab] log p(token given the image) - log p(token given no image).
    """
    return with_image.log_softmax(-1) - without_image.log_softmax(-1)
