"""Fixing imbalanced attention: amplify patches that the vision tower finds informative, and those that sum it up."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Memory, Probe
from decoding.strategies.parameters import FirstLayer
from decoding.strategy import Captured, Keys, Program, Strategy, Tensors

TINY = 1e-12  # a layer that nothing moves has no sensitive head


class PAINT(Strategy):
    """s_j <- s_j + alpha |s_j| for local patches j, s_j + beta |s_j| for summary patches.

    s are the attention scores of the newest token before the softmax, in the layers from number `first_layer` on. What
    a patch is follows from the attention of the vision tower's class token, summed over heads. Local are the `ratio`
    that get most in the first layer: they look like something. Summary are those whose share in the last layer but one
    lies above Q3 + 1.5 (Q3 - Q1): there the tower keeps what it knows of the picture as a whole. Summary patches are
    not local; other patches stay as they are. Arif et al., arXiv:2501.12206.

    `modulation` "sensitive" is the head-specific modulation that the paper announces: alpha and beta are multiplied by
    the visual sensitivity of each head, |A(with picture) - A(without)| at the last position of the prompt over the mean
    of its layer, where A is the head's output before the output projection. It asks one prompt more.

    On the transformers engine the edited query row is computed beside SDPA, as for `pai`; no matrix is held.

    Deviations from the official code:
    - The code has no head-specific modulation. The measure is that of VHR.
    - Its spatial set, off by default, ranks rows of a softmax by their sum, which is 1; it is left out.
    - It contrasts with an image-free prompt as PAI does, on demand: here that is `pai+paint` with pai's alpha at 0.
    - Its defaults, alpha 0.7 and beta 0.3, are kept, though between alpha 0.5 and 0.7 the published answers double in
      length, and their F1 falls: look at length and repetition beside CHAIR.
    - Layers go on to the last of any model, and of several pictures each has its own two sets.
    """

    name = "paint"
    paper = "arXiv:2501.12206"

    alpha: Annotated[float, Field(ge=0, le=10, description="How much louder local patches get.")] = 0.7
    beta: Annotated[float, Field(ge=0, le=10, description="How much louder summary patches get.")] = 0.3
    ratio: Annotated[float, Field(ge=0, le=1, description="Share of the patches that are local.")] = 0.25
    first_layer: FirstLayer = 2
    modulation: Annotated[
        Literal["uniform", "sensitive"],
        Field(description="All heads alike, or each by its measured visual sensitivity."),
    ] = "uniform"

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        if self.modulation == "uniform":
            probe = Probe(self, {"seeing": ask.prompt}, main="seeing", capture=frozenset({"vision"}))
        else:
            pair = {"seeing": ask.prompt, "blind": ask.prompt.without_pictures()}
            probe = Probe(self, pair, main="seeing", capture=frozenset({"vision", "heads"}))
        memory: Memory = yield probe
        return ask.remember(self, memory)

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        memory = memory or {"louder": self.louder(captured.vision["seeing"])}
        if self.modulation == "uniform":
            return memory
        seeing, blind = captured.heads["seeing"].float(), captured.heads["blind"].float()  # [heads, head_dim]
        sensitivity: Tensor = torch.linalg.vector_norm(seeing - blind, dim=-1)
        factors = memory.get("heads", sensitivity.new_ones(captured.layers, len(sensitivity))).clone()
        factors[captured.layer] = sensitivity / sensitivity.mean().clamp(min=TINY)
        return {**memory, "heads": factors}

    def louder(self, attention: Tensor) -> Tensor:
        """[tower layers, pictures, heads, patches] -> [pictures * patches] coefficients of |s|."""
        first, late = attention[0].sum(dim=1), attention[max(len(attention) - 2, 0)].sum(dim=1)  # [pictures, patches]
        lower, upper = late.quantile(torch.tensor([0.25, 0.75], device=late.device), dim=-1, keepdim=True)
        summary = late > upper + 1.5 * (upper - lower)
        informative = first.topk(int(self.ratio * first.shape[-1]), dim=-1).indices
        local = torch.zeros_like(summary).scatter(-1, informative, True) & ~summary
        louder: Tensor = self.alpha * local.float() + self.beta * summary.float()
        return louder.flatten()

    def attend(self, scores: Tensor, keys: Keys, memory: Tensors) -> Tensor:
        if keys.layer < self.first_layer:
            return scores
        louder = memory["louder"].gather(-1, keys.pictures.clamp(min=0)) * keys.visual  # [..., keys]
        factors = memory["heads"][..., keys.layer, :, None] if "heads" in memory else 1.0
        return scores + (factors * louder[..., None, :]).to(scores.dtype) * scores.abs()
