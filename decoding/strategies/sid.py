"""Self-introspective decoding: subtract what the model says when it keeps only what it looks at least."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Memory, Probe
from decoding.strategies.parameters import Contrast, Plausibility
from decoding.strategy import Captured, Program, Step, Strategy, Tensors
from decoding.tensors import contrast, only, plausible


class SID(Strategy):
    """z_f = (1 + alpha) z - alpha z_least where p(w) >= beta max p, -inf elsewhere.

    z_least sees the same prompt, but from layer number `layer` on only the share `kept` of the picture's tokens to
    which the last token of the prompt attends least in the layer before, by the mean over its heads. What is left of
    the picture there is vague, and brings out what the language alone would say.
    Huo et al., ICLR 2025, arXiv:2408.02032.

    Tokens are really dropped: from `layer` on, the pass over the branch's prompt has no rows for them. This equals a
    mask over their keys, for nothing that stays would have seen them. The choice costs no pass of its own: up to
    `layer` the branch is the main prompt, whose pass the answer goes on from.

    Deviations from the official code:
    - It masks instead of dropping, saves nothing, and chooses anew at every token; its dropping variant is said not to
      work with a cache. Here the choice is made once, at the end of the prompt.
    - `kept` is a share, about a tenth as in the paper; the code has numbers, of 576: 100 for POPE, 50 for captions.
    - Of several pictures the tokens are ranked together.
    """

    name = "sid"
    paper = "arXiv:2408.02032"

    alpha: Contrast = 1.0
    beta: Plausibility = 0.1
    kept: Annotated[float, Field(ge=0, le=1, description="Share of the picture's tokens that the branch keeps.")] = 0.1
    layer: Annotated[int, Field(ge=1, le=1000, description="Number of the first layer without the others, from 0.")] = 2

    def run(self, ask: Ask) -> Program:
        ask.prompt.require_pictures(self.name)
        probe = Probe(self, {"seeing": ask.prompt}, main="seeing", capture=frozenset({"attention"}))
        memory: Memory = yield probe
        return ask.branch(self, "least", ask.prompt).remember(self, memory)

    def digest(self, memory: Tensors, captured: Captured) -> Tensors:
        attention = captured.attention["seeing"].mean(dim=0)  # [picture tokens]
        everything = torch.ones(captured.layers, len(attention), dtype=torch.bool, device=attention.device)
        seen = memory.get("seen", everything)
        if captured.layer != min(self.layer, captured.layers) - 1:
            return {"seen": seen}
        least = attention.topk(int(self.kept * len(attention)), largest=False).indices
        kept = torch.zeros_like(seen[0]).scatter(0, least, True)
        later = torch.arange(captured.layers, device=seen.device)[:, None] >= self.layer
        return {"seen": ~later | kept}

    def narrow(self, memory: Tensors) -> Tensor:
        return memory["seen"]

    def logits(self, step: Step) -> Tensor:
        return only(contrast(step.scores, step.branches["sid/least"], self.alpha), plausible(step.raw, self.beta))
