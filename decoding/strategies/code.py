"""Countering description contrastive decoding: subtract what the model says to its own description of the picture."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Answer, Ask, Sampling
from decoding.strategies.parameters import DescriptionTokens
from decoding.strategy import TEXT_SIDE, Program, Step, Strategy
from decoding.tensors import contrast, only, plausible

DESCRIBE = (
    "Describe this image in detail: all that can be seen in it and how it interacts, "
    "so that any question about the image could be answered from the description alone."
)


class CODE(Strategy):
    """z_f = (1 + alpha k) z - alpha k z_told where p(w) >= beta D max p, -inf elsewhere, with k = 1 - D.

    z_told reads, in the picture's place, the model's own description of it, which holds what the model sees and what it
    makes up. How far the two disagree about the next token decides both how strong the contrast is and how much is cut:
    D = 1/2 sum_w log2(|p(w) - p_told(w)|^a + 1) (p(w) + p_told(w)), between 0 and 1, with p and p_told the softmax of
    the two. Where they agree, D is small: the contrast is strong and hardly anything is cut.
    Kim et al., NeurIPS 2024, arXiv:2406.01920.

    Deviations from the official code:
    - a is 0.7, the default of its command line; the function behind that falls back to 0.2.
    - alpha and beta, which scale the two dynamic terms, are ours: at 1 they are the paper's method. The code reads a
      beta as well and never uses it.
    - The description's prompt is worded anew, with the same content. The description is greedy, as the code's is at its
      default temperature of 0, and up to 512 tokens long.
    """

    name = "code"
    paper = "arXiv:2406.01920"

    alpha: Annotated[
        float, Field(ge=0, le=100, description="Scales the dynamic contrast; 1 is the paper's, 0 turns it off.")
    ] = 1.0
    beta: Annotated[
        float, Field(ge=0, le=1, description="Scales the dynamic cut; 1 is the paper's, 0 turns it off.")
    ] = 1.0
    exponent: Annotated[
        float, Field(ge=0, le=10, description="a: the smaller, the more a slight disagreement counts.")
    ] = 0.7
    description_tokens: DescriptionTokens = 512
    description_prompt: Annotated[
        str, Field(min_length=1, max_length=4096, description="Asks for the description."), TEXT_SIDE
    ] = DESCRIBE

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        # Not `ask.but(...)`: branches and strategies that `ask` already has belong to the answer, not to this question.
        describe = ask.prompt.with_question(self.description_prompt)
        described: Answer = yield Ask(describe, Sampling(max_tokens=self.description_tokens))
        told = ask.prompt.without_pictures().with_question(f"{described.text.strip()}\n{ask.prompt.question}")
        return ask.branch(self, "told", told)

    def logits(self, step: Step) -> Tensor:
        told = step.branches["code/told"]
        distance = self.distance(step.raw, told)  # [..., 1], float32
        weight = self.alpha * (1 - distance)
        return only(contrast(step.scores, told, weight), plausible(step.raw, self.beta * distance))

    def distance(self, seen: Tensor, told: Tensor) -> Tensor:
        """D of two [..., vocab] logits, as [..., 1]."""
        p, p_told = seen.softmax(dim=-1, dtype=torch.float32), told.softmax(dim=-1, dtype=torch.float32)
        bits = ((p - p_told).abs() ** self.exponent + 1).log2()
        return (bits * (p + p_told)).sum(dim=-1, keepdim=True).div(2).clamp(0, 1)
