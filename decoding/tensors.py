"""Pure functions over [..., vocab] scores, and the noise of visual contrastive decoding.

None of them changes its input, widens the dtype of what it returns, or lets -inf become anything else.
"""

import math
from functools import cache

import torch
from torch import Tensor

from decoding.prompt import Noise

DIFFUSION_STEPS = 1000
HEAD = 64  # tokens that are looked at before all are sorted


def plausible(raw: Tensor, beta: float | Tensor) -> Tensor:
    """Mask of the tokens at least `beta` times as likely as the likeliest: p(w) >= beta max p.

    The normaliser of the softmax cancels, so this is z(w) >= max z + ln beta. The cut-off is taken in float64: rounded
    to the dtype of the logits it could fall on a token that lies below it. A beta that differs between rows is
    [..., 1].
    """
    possible = raw > -torch.inf
    if isinstance(beta, float | int) and beta == 0:
        return possible
    least = beta.double().log() if isinstance(beta, Tensor) else math.log(beta)
    return possible & (raw >= raw.amax(dim=-1, keepdim=True).double() + least)


def nucleus(logits: Tensor, temperature: float, top_p: float) -> Tensor:
    """Mask of the smallest set of likeliest tokens whose tempered probability reaches `top_p`; never empty.

    On a CPU sorting a vocabulary can take longer than a layer of the model, so it is first looked whether the likeliest
    token, or a few, are enough. On other devices sorting is cheap, and to look would hold the device up.
    """
    if top_p >= 1:  # a rounded cumulative sum could lose the tail
        return logits > -torch.inf
    tempered = (logits.float() / temperature).softmax(dim=-1)
    if logits.device.type == "cpu":
        most = tempered.amax(dim=-1, keepdim=True)
        if most.min().item() > max(top_p, 0.5):  # above one half there is no second one
            return tempered == most
    ordered, tokens, reached = likeliest(tempered, top_p)
    keep = reached - ordered < top_p
    keep[..., 0] = True
    possible = logits > -torch.inf
    return possible & torch.zeros_like(possible).scatter(-1, tokens, keep)


def likeliest(probabilities: Tensor, mass: float) -> tuple[Tensor, Tensor, Tensor]:
    """The tokens in descending order, their ids, and their running sum, each [..., n]; enough to reach the mass."""
    vocab = probabilities.shape[-1]
    if probabilities.device.type == "cpu" and vocab > HEAD:
        ordered, tokens = probabilities.topk(HEAD)
        reached = ordered.cumsum(dim=-1)
        if (reached[..., -1] >= mass).all():
            return ordered, tokens, reached
    ordered, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    return ordered, tokens, ordered.cumsum(dim=-1)


def top(logits: Tensor, k: int) -> Tensor:
    """Mask of the k likeliest tokens, and of those as likely as the last of them; k 0 keeps all."""
    possible = logits > -torch.inf
    if k == 0 or k >= logits.shape[-1]:
        return possible
    return possible & (logits >= logits.topk(k, dim=-1).values[..., -1:])


def only(scores: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, scores, -torch.inf)


def weighted(scores: Tensor, weight: float | Tensor) -> Tensor:
    """weight scores. One that differs between rows is [..., 1], and gives each row what its number alone would give.

    A number counts as float32, or more, and the product is rounded once.
    """
    if isinstance(weight, float | int):
        return weight * scores
    return (weight.to(torch.promote_types(scores.dtype, torch.float32)) * scores).to(scores.dtype)


def add(scores: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """scores + weight other. Weight 0 gives the scores to the last bit, whatever `other` holds."""
    # 0 times -inf is nan.
    return scores + weighted(other, weight).nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def contrast(scores: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """(1 + weight) scores - weight other: `shifted` from what the other says."""
    return shifted(scores, scores, other, weight)


def shifted(scores: Tensor, towards: Tensor, away: Tensor, weight: float | Tensor) -> Tensor:
    """scores + weight (towards - away), written so that equal branches or weight 0 give the scores to the last bit.

    Where either is -inf there is nothing to contrast and the score stays: subtracted, an -inf of `away` would force
    the token, and two of them would make nan.
    """
    gap = towards - away
    return scores + weighted(gap.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0), weight)


def subtract(scores: Tensor, other: Tensor, weight: float | Tensor) -> Tensor:
    """scores - weight other; where `other` is -inf the score stays. Weight 0 gives the scores to the last bit."""
    taken = weighted(other, weight)
    return scores - taken.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence, in nats, of the distributions of two logits: [..., vocab] each -> [...]."""
    p, q = (logits.softmax(dim=-1, dtype=torch.float32) for logits in (one, other))
    return entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2


def entropy(p: Tensor) -> Tensor:
    shares: Tensor = torch.special.entr(p)
    return shares.sum(dim=-1)


@cache
def alphas() -> Tensor:
    """[1000] how much of the signal's variance is left after each step of VCD's forward diffusion.

    b_i = sigmoid(u_i) (5e-3 - 1e-5) + 1e-5 with u equally spaced on [-6, 6]; alpha_t = prod_{i <= t} (1 - b_i).
    """
    rates = torch.linspace(-6, 6, DIFFUSION_STEPS, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    return (1 - rates).cumprod(dim=0)


def diffuse(pixels: Tensor, step: int, generator: torch.Generator) -> Tensor:
    """sqrt(alpha_t) x + sqrt(1 - alpha_t) eps. The noise is drawn on the CPU, so every device sees the same."""
    alpha = alphas()[step].item()
    noise = torch.randn(pixels.shape, generator=generator).to(pixels)
    return math.sqrt(alpha) * pixels + math.sqrt(1 - alpha) * noise


def noised(pixels: Tensor, noise: Noise) -> Tensor:
    """One picture's normalised pixels, in whatever shape its model takes them, with the noise it asks for."""
    return diffuse(pixels, noise.step, torch.Generator().manual_seed(noise.seed))
