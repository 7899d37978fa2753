"""Vision-aware head reinforcement: amplify the heads that change most when the picture is taken away."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Memory, Probe
from decoding.strategy import Captured, Program, Strategy, Tensors

CORRECTION = {"population": 0, "sample": 1}


class VHR(Strategy):
    """A_{l,i} <- alpha A_{l,i} for the heads i of layer l whose output the picture changes most.

    A_{l,i} is the output of a query head before the output projection, at the last position of the prompt, and
    VHD_{l,i} = |A_{l,i}(with picture) - A_{l,i}(without)|, with the picture's tokens taken out of the prompt (Eq. 4).
    Heads above the median of their layer are reinforced (Eq. 7). First VHD_{l,i} is set to 0 where both it and
    |A_{l,i}(without)|^2 exceed mean + deviation of their layer: such heads are loud in any case (Eq. 6).
    The heads are chosen once, layer by layer in a single pass, so that a layer sees those below it reinforced already.
    He et al., ACL 2025, arXiv:2412.13949.

    Layers, 0-based: the second, and the last `late` of them. The defaults give the paper's 1 and 18...31 of 32
    (LLaVA-1.5, LLaVA-NeXT); its 14...31 for InstructBLIP are `late` 0.5625 and `second` false. The paper warns that
    the second layer does not suit every model.

    What the paper leaves open, and is chosen here (the official code was not at hand):
    - The factors act at every position, the prompt's included, so that cached keys and values agree with them.
    - Only the run with the picture is reinforced.
    - The distance is Euclidean; a port uses its square, which can change the outliers but not the median.
    - Deviations are those of the population.
    """

    name = "vhr"
    paper = "arXiv:2412.13949"

    alpha: Annotated[float, Field(ge=0, le=10, description="Factor on the chosen heads; 1 changes nothing.")] = 2.0
    late: Annotated[float, Field(ge=0, le=1, description="Share of the layers, from the last, to reinforce.")] = 14 / 32
    second: Annotated[bool, Field(description="Reinforce the second layer too.")] = True
    outliers: Annotated[
        Literal["population", "sample", "keep"],
        Field(
            description="Deviation by which heads that are loud in any case are told; `keep` takes them as they are."
        ),
    ] = "population"

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        pair = {"seeing": ask.prompt, "blind": ask.prompt.without_pictures()}
        memory: Memory = yield Probe(self, pair, main="seeing", layerwise=True)
        return ask.remember(self, memory)

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        seeing, blind = captured.heads["seeing"], captured.heads["blind"]  # [heads, head_dim]
        factors = memory.get("factors", seeing.new_ones(captured.layers, len(seeing))).clone()
        if captured.layer in self.layers(captured.layers):
            factors[captured.layer].masked_fill_(self.visual(seeing.float(), blind.float()), self.alpha)
        return {"factors": factors}

    def heads(self, memory: Tensors) -> Tensor:
        return memory["factors"]

    def layers(self, depth: int) -> frozenset[int]:
        last = math.floor(self.late * depth + 0.5)
        chosen = set(range(depth - last, depth))
        return frozenset(chosen | ({1} if self.second and depth > 1 else set()))

    def visual(self, seeing: Tensor, blind: Tensor) -> Tensor:
        """[heads, head_dim] with and without the picture -> [heads] true for the heads to reinforce."""
        divergence: Tensor = torch.linalg.vector_norm(seeing - blind, dim=-1)
        if self.outliers != "keep":
            correction = CORRECTION[self.outliers]
            loud = outlying(divergence, correction) & outlying(blind.square().sum(dim=-1), correction)
            divergence = divergence.masked_fill(loud, 0.0)
        return divergence > divergence.median()


def outlying(values: Tensor, correction: int) -> Tensor:
    """[heads] true above mean + standard deviation."""
    centred = values - values.mean()
    variance = centred.square().sum() / max(len(values) - correction, 1)
    return centred > variance.sqrt()
