"""Log-probabilities of the tokens of a prompt: their bound and their computation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from decoding.errors import BadRequest
from decoding.outputs import PromptScores

MAX_ENTRIES = 500_000  # log-probabilities of one prompt. As JSON they take about 40 MB.


def check_entries(tokens: int, count: int) -> None:
    """Check that the log-probabilities of a prompt are not too many.

    Args:
        tokens: Length of the prompt.
        count: Likeliest tokens beside each token.

    Raises:
        BadRequest: They are too many.
    """
    if tokens * (1 + count) > MAX_ENTRIES:
        raise BadRequest(
            f"The prompt has {tokens} tokens. With {count} alternatives each, they have more than {MAX_ENTRIES} "
            "log-probabilities.",
            param="prompt_logprobs",
        )


def score_tokens(logits: Tensor, targets: Tensor, count: int) -> PromptScores:
    """Compute the log-probabilities of tokens, and the likeliest tokens at their places.

    Args:
        logits: [n, vocab] before each token.
        targets: [n] ids of the tokens. An id beyond the vocabulary, as some image tokens have, counts as the last one.
        count: Likeliest tokens.

    Returns:
        The scores.
    """
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(-1, targets.clamp(max=logprobs.shape[-1] - 1)[:, None])
    best = logprobs.topk(count)
    return PromptScores(
        own[:, 0].cpu().numpy(),
        (logprobs >= own).sum(-1).cpu().numpy(),
        best.indices.cpu().numpy(),
        best.values.cpu().numpy(),
    )


def join_scores(parts: Sequence[PromptScores]) -> PromptScores:
    """Join the scores of consecutive tokens."""
    return PromptScores(
        np.concatenate([part.logprobs for part in parts]),
        np.concatenate([part.ranks for part in parts]),
        np.concatenate([part.top_ids for part in parts]),
        np.concatenate([part.top_logprobs for part in parts]),
    )
