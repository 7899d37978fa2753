"""Pure functions over [..., vocab] logits.

None of them changes its input, widens the dtype of its result, or turns -inf into another value.
"""

import math

import torch
from torch import Tensor

NUM_TOP_TOKENS = 64  # tokens that are tried before the whole vocabulary is sorted


def plausibility_mask(raw: Tensor, beta: float | Tensor) -> Tensor:
    """Select tokens that are at least `beta` times as likely as the likeliest: p(w) >= beta max p.

    The normalizer of the softmax cancels, so that this is z(w) >= max z + ln beta. The threshold is computed in
    float64. Rounded to the dtype of the logits it could equal the logit of a token below it.

    Args:
        raw: [..., vocab] logits of the model.
        beta: Share of the largest probability; [..., 1] where rows differ.

    Returns:
        [..., vocab] mask.
    """
    possible = raw > -torch.inf
    if isinstance(beta, float | int) and beta == 0:
        return possible
    threshold = beta.double().log() if isinstance(beta, Tensor) else math.log(beta)
    return possible & (raw >= raw.amax(dim=-1, keepdim=True).double() + threshold)


def top_p_mask(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Select the smallest set of likeliest tokens whose probability reaches `top_p`. It is never empty.

    On a CPU, sorting a vocabulary can take longer than a layer of the model. There, the likeliest token and then a few
    more are tried first. On other devices sorting is cheap, and the test would need a synchronisation.

    Args:
        logits: [..., vocab] logits.
        temperature: Temperature of the probabilities.
        top_p: Probability to reach.

    Returns:
        [..., vocab] mask.
    """
    if top_p >= 1:  # a rounded cumulative sum could lose the tail
        return logits > -torch.inf
    tempered = (logits.float() / temperature).softmax(dim=-1)
    if logits.device.type == "cpu":
        largest = tempered.amax(dim=-1, keepdim=True)
        if largest.min().item() > max(top_p, 0.5):  # above one half it is unique
            return tempered == largest
    probabilities, tokens, cumulative = top_tokens(tempered, top_p)
    keep = cumulative - probabilities < top_p
    keep[..., 0] = True
    possible = logits > -torch.inf
    return possible & torch.zeros_like(possible).scatter(-1, tokens, keep)


def top_tokens(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor, Tensor]:
    """Sort tokens by probability, as many as are needed to reach `mass`.

    Args:
        probabilities: [..., vocab] probabilities.
        mass: Cumulative probability to reach.

    Returns:
        [..., n] probabilities in descending order, token ids, and cumulative probabilities.
    """
    vocab = probabilities.shape[-1]
    if probabilities.device.type == "cpu" and vocab > NUM_TOP_TOKENS:
        ordered, tokens = probabilities.topk(NUM_TOP_TOKENS)
        cumulative = ordered.cumsum(dim=-1)
        if (cumulative[..., -1] >= mass).all():
            return ordered, tokens, cumulative
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    return ordered, tokens, ordered.cumsum(dim=-1)


def top_k_mask(logits: Tensor, k: int) -> Tensor:
    """Select the `k` likeliest tokens, and those as likely as the last of them; k 0 keeps all.

    Args:
        logits: [..., vocab] logits.
        k: Number of tokens.

    Returns:
        [..., vocab] mask.
    """
    possible = logits > -torch.inf
    if k == 0 or k >= logits.shape[-1]:
        return possible
    return possible & (logits >= logits.topk(k, dim=-1).values[..., -1:])


def mask_logits(scores: Tensor, keep: Tensor) -> Tensor:
    """Set scores outside a [..., vocab] mask to -inf."""
    return torch.where(keep, scores, -torch.inf)


def scale(scores: Tensor, weight: float | Tensor) -> Tensor:
    """Compute weight * scores.

    Args:
        scores: [..., vocab] scores.
        weight: A number, or [..., 1] where rows differ. A tensor gives each row the result of its number alone: it
            counts as float32 or more, and the product is rounded once.

    Returns:
        [..., vocab] scores in the same dtype.
    """
    if isinstance(weight, float | int):
        return weight * scores
    return (weight.to(torch.promote_types(scores.dtype, torch.float32)) * scores).to(scores.dtype)


def add(scores: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """Compute scores + weight * other, [..., vocab]. Weight 0 keeps the scores to the last bit."""
    # 0 times -inf is nan.
    return scores + scale(other, weight).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def contrast(scores: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """Compute (1 + weight) * scores - weight * other, [..., vocab]."""
    return shift(scores, scores, other, weight)


def shift(scores: Tensor, towards: Tensor, away: Tensor, weight: float | Tensor) -> Tensor:
    """Compute scores + weight * (towards - away).

    In this form, equal branches or weight 0 keep the scores to the last bit. Where `towards` or `away` is -inf, the
    score stays. Subtracting an -inf of `away` would force the token, and two of them would make nan.

    Args:
        scores: [..., vocab] scores.
        towards: [..., vocab] logits.
        away: [..., vocab] logits.
        weight: A number, or [..., 1] where rows differ.

    Returns:
        [..., vocab] scores.
    """
    gap = towards - away
    return scores + scale(gap.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), weight)


def subtract(scores: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """Compute scores - weight * other, [..., vocab]. Where `other` is -inf, and with weight 0, the score stays."""
    return scores - scale(other, weight).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def js_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Compute the Jensen-Shannon divergence, in nats, of two [..., vocab] logits, as [...]."""
    p, q = (logits.softmax(dim=-1, dtype=torch.float32) for logits in (one, other))
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def mean_kl_divergence(one: Tensor, other: Tensor) -> Tensor:
    """Compute (KL(m || p) + KL(m || q)) / 2, in nats, of two [..., vocab] logits, with the mean m of p and q, as [...].

    Returns:
        The divergence. Tokens that are ruled out in either count nothing.
    """
    log_p, log_q = (logits.log_softmax(dim=-1, dtype=torch.float32) for logits in (one, other))
    mean = (log_p.exp() + log_q.exp()) / 2
    terms = torch.xlogy(mean, mean) - mean * (log_p + log_q) / 2
    return torch.where((log_p > -torch.inf) & (log_q > -torch.inf), terms, 0.0).sum(dim=-1)


def entropy(p: Tensor) -> Tensor:
    """Compute the entropy, in nats, of [..., vocab] probabilities, as [...]."""
    terms: Tensor = torch.special.entr(p)
    return terms.sum(dim=-1)
