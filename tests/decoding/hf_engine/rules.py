"""What each strategy makes of the scores, as the papers have it: written out once more, slowly, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from decoding.strategies.agla import AGLA
from decoding.strategies.avisc import AvisC
from decoding.strategies.deco import DeCo
from decoding.strategies.dola import DoLa
from decoding.strategies.pai import PAI
from decoding.strategies.sharpen import Sharpen
from decoding.strategies.sid import SID
from decoding.strategies.truncate import Truncate
from decoding.strategies.vcd import VCD
from decoding.strategies.vdgd import VDGD
from decoding.strategy import Strategy
from tests.decoding.naive import candidates, most_apart


def mixed(
    strategy: Strategy,
    scores: Tensor,
    z: Tensor,
    branches: Mapping[str, Tensor],
    early: dict[int, Tensor],
    description: list[Tensor],
) -> Tensor:
    match strategy:
        case Truncate():
            return scores.where(plausible(z, strategy.beta), -math.inf)
        case Sharpen():
            return (strategy.scale * scores).where(plausible(z, strategy.beta), -math.inf)
        case VCD():
            contrasted = (1 + strategy.alpha) * scores - strategy.alpha * branches["vcd"]
            return contrasted.where(plausible(z, strategy.beta), -math.inf)
        case AGLA():
            return (scores + strategy.alpha * branches["agla"]).where(plausible(z, strategy.beta), -math.inf)
        case SID() | AvisC():
            contrasted = (1 + strategy.alpha) * scores - strategy.alpha * branches[strategy.name]
            return contrasted.where(plausible(z, strategy.beta), -math.inf)
        case PAI(gamma=1.0):
            return scores
        case PAI():
            seeing, blind = scores.log_softmax(-1), branches["pai"].log_softmax(-1)
            guided = strategy.gamma * (seeing - blind) + blind
            return guided.where(plausible(z, strategy.beta), -math.inf)
        case DoLa():
            premature = early[most_apart(z, early)]
            return (scores.log_softmax(-1) - premature.log_softmax(-1)).where(plausible(z, strategy.beta), -math.inf)
        case DeCo():
            return corrected(scores, z, early, strategy)
        case VDGD():
            return grounded(scores, z, description, strategy)
        case _:
            return scores


def plausible(z: Tensor, beta: float) -> Tensor:
    p = z.softmax(-1)
    return p >= beta * p.max()


def grounded(scores: Tensor, z: Tensor, description: list[Tensor], vdgd: VDGD) -> Tensor:
    """Minus the divergence of each candidate's one-hot distribution from those of the description."""
    p = (z / vdgd.temperature).softmax(-1).tolist()
    held, candidates = 0.0, set()
    for token in sorted(range(len(p)), key=lambda token: -p[token]):
        if held < vdgd.top_p:
            candidates.add(token)
        held += p[token]
    out = torch.full_like(scores, -math.inf)
    for token in candidates:
        if scores[token] > -math.inf:
            one_hot = torch.zeros_like(z)
            one_hot[token] = 1
            divergences = [float(torch.xlogy(one_hot, one_hot).sub(one_hot * log).sum()) for log in description]
            out[token] = -(min(divergences) if vdgd.reduction == "min" else sum(divergences) / len(divergences))
    return out


def corrected(scores: Tensor, z: Tensor, early: dict[int, Tensor], deco: DeCo) -> Tensor:
    """Of all layers and candidates, the surest pair decides which layer is added, and how much of it."""
    chosen = candidates(z, deco.top_p, deco.top_k)
    sure, depth = max((float(logits.softmax(-1)[token]), depth) for depth, logits in early.items() for token in chosen)
    out = torch.full_like(scores, -math.inf)
    for token in chosen:
        out[token] = scores[token] + deco.alpha * sure * early[depth][token]
    return out
