"""Grounding of tokens, and log-probabilities of scored texts, as both engines report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decoding.pipeline.composition import copy_numbers


def score_texts(scores: Tensor, first_tokens: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Sum the probabilities of the tokens with which each scored text can begin.

    Args:
        scores: [vocab] scores of the strategies.
        first_tokens: Scored text -> its first tokens.

    Returns:
        Scored text -> log-probability.
    """
    return dict(zip(first_tokens, compute_text_logprobs(scores, first_tokens).tolist(), strict=True))


def compute_text_logprobs(scores: Tensor, first_tokens: Mapping[str, Sequence[int]]) -> Tensor:
    """Compute the same, without waiting for the device.

    Args:
        scores: [vocab] scores of the strategies.
        first_tokens: Scored text -> its first tokens.

    Returns:
        [texts] log-probabilities, in the order of `first_tokens`.
    """
    logprobs = scores.log_softmax(-1)
    indices = [copy_numbers(tokens, torch.long, scores.device) for tokens in first_tokens.values()]
    return torch.stack([logprobs[index].logsumexp(-1) for index in indices])


def compute_grounding(with_image: Tensor, without_image: Tensor) -> Tensor:
    """Compute the grounding of each token.

    Args:
        with_image: [vocab] logits of the main row.
        without_image: [vocab] logits of the grounding branch.

    Returns:
        [vocab] log p(token given the image) - log p(token given no image).
    """
    return with_image.log_softmax(-1) - without_image.log_softmax(-1)
