"""Attentional vision calibration: subtract what the model says to the tokens that draw attention whatever is asked."""

from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Memory, Probe
from decoding.strategies.parameters import Contrast, Plausibility
from decoding.strategy import Captured, Program, Step, Strategy, Tensors
from decoding.tensors import contrast, only, plausible


class AvisC(Strategy):
    """z_f = (1 + alpha) z - alpha z_blind where p(w) >= beta max p, -inf elsewhere.

    z_blind sees the same prompt with the blind tokens of the picture alone: those whose attention lies at or above
    mean + deviations * standard deviation. It is the attention of the prompt's last token, by the mean over heads, and
    over the layers that look most at the picture: the fewest whose share of all attention to it reaches `gamma`.
    Woo et al., arXiv:2405.17820. The defaults are those of the official script for POPE; the program that it starts
    would take 0.99 deviations by itself.

    The choice costs no pass of its own: the answer goes on from the pass over the prompt in which it is made.

    Deviations from the official code:
    - Tokens that are not blind are dropped; the code leaves them in their places with their embeddings masked.
    - The standard deviation is that of the tokens at hand; the code takes them for a sample, and divides by one less.
    - The code has the places of the picture's tokens written in for two families; here they are the prompt's own.
    """

    name = "avisc"
    paper = "arXiv:2405.17820"

    alpha: Contrast = 1.0
    beta: Plausibility = 0.1
    gamma: Annotated[float, Field(gt=0, le=1, description="Share of the attention to the picture to go by.")] = 0.5
    deviations: Annotated[float, Field(ge=0, le=100, description="How far above the mean a token is blind.")] = 1.0

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        probe = Probe(self, {"seeing": ask.prompt}, main="seeing", capture=frozenset({"attention"}))
        memory: Memory = yield probe
        return ask.branch(self, "blind", ask.prompt).remember(self, memory)

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        attention = captured.attention["seeing"].float().mean(dim=0)  # [picture tokens]
        drawn = memory.get("drawn", attention.new_zeros(captured.layers, len(attention))).clone()
        drawn[captured.layer] = attention
        return {"drawn": drawn}

    def narrow(self, memory: Tensors) -> Tensor:
        return self.blind(memory["drawn"]).expand_as(memory["drawn"])

    def blind(self, drawn: Tensor) -> Tensor:
        """[layers, picture tokens] attention -> [picture tokens] true for those that draw it in any case."""
        ordered, layers = (drawn.sum(dim=-1) / drawn.sum()).sort(descending=True)
        looking = layers[ordered.cumsum(dim=0) - ordered < self.gamma]
        mean = drawn[looking].mean(dim=0)
        return mean >= mean.mean() + self.deviations * mean.std(correction=0)

    def logits(self, step: Step) -> Tensor:
        return only(contrast(step.scores, step.branches["avisc/blind"], self.alpha), plausible(step.raw, self.beta))
