"""Pay attention to image: amplify what the newest token attends to in the picture, and contrast with no picture."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Ask
from decoding.strategies.parameters import FirstLayer, Plausibility
from decoding.strategy import Keys, Step, Strategy, Tensors
from decoding.tensors import contrast, only, plausible


class PAI(Strategy):
    """s_j <- s_j + alpha |s_j| for the tokens j of the picture; z_f = z_blind + gamma (z - z_blind) where plausible.

    s are the attention scores of the newest token before the softmax, in all heads of the layers from number
    `first_layer` on; positive scores grow and negative ones shrink towards 0, so the picture is heard more in either
    case. z_blind sees the prompt without its pictures, and attends as the model does: the second rule is
    classifier-free guidance. Plausible is p(w) >= beta max p; other tokens
    get -inf. gamma 1 leaves guidance out, with its cut and its branch.
    Liu et al., ECCV 2024, arXiv:2407.21771.

    The transformers engine runs every pass with SDPA and computes the one edited query row a second time, score by
    score; no matrix of attention is held.

    Deviations from the official code:
    - The paper's `first_layer` 2 of 32 is an absolute number here too, and the edit goes on to the last layer of any
      model; the code stops at layer 31 whatever the depth.
    - alpha 0.2 and gamma 1.1 are those of its README for LLaVA; its argument parser has gamma 2.
    - Scores are mixed as logits; the code's log-probabilities differ from them by one number a token.
    """

    name = "pai"
    paper = "arXiv:2407.21771"

    alpha: Annotated[float, Field(ge=0, le=10, description="How much louder the picture gets; 0 changes nothing.")] = (
        0.2
    )
    gamma: Annotated[float, Field(ge=1, le=100, description="Guidance; 1 turns it off, and saves its branch.")] = 1.1
    beta: Plausibility = 0.1
    first_layer: FirstLayer = 2

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask if self.gamma == 1 else ask.branch(self, "blind", ask.prompt.without_pictures())

    def attend(self, scores: Tensor, keys: Keys, memory: Tensors) -> Tensor:
        if keys.layer < self.first_layer:
            return scores
        return torch.where(keys.visual[..., None, :], scores + self.alpha * scores.abs(), scores)

    def logits(self, step: Step) -> Tensor:
        if self.gamma == 1:
            return step.scores
        guided = contrast(step.scores, step.branches["pai/blind"], self.gamma - 1)
        return only(guided, plausible(step.raw, self.beta))
