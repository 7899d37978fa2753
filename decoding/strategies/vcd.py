"""Visual contrastive decoding: subtract what the model says about a noisy picture."""

from itertools import count
from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.ask import Ask, Noise, Prompt
from decoding.strategies.parameters import Contrast, Plausibility
from decoding.strategy import TEXT_SIDE, Step, Strategy
from decoding.tensors import contrast, only, plausible


class VCD(Strategy):
    """z_f = (1 + alpha) z - alpha z_noisy where p(w) >= beta max p, -inf elsewhere.

    z_noisy sees the same text and a picture put through `noise_step` + 1 of 1000 steps of forward diffusion, after
    normalisation: x_t = sqrt(a_t) x + sqrt(1 - a_t) eps. What the model says regardless of the picture cancels.
    Leng et al., CVPR 2024, arXiv:2311.16922.

    Deviations from the official code:
    - Greedy decoding is mixed too; the code patches only `sample()`, and without sampling runs the plain model.
    - alpha is 1 for every model, as in the paper; the code's InstructBLIP runner forgets to pass it and runs at 0.5.
    - The noise of a picture follows from `noise_seed` and its place in the prompt, so that an answer can be repeated.
    """

    name = "vcd"
    paper = "arXiv:2311.16922"

    alpha: Contrast = 1.0
    beta: Plausibility = 0.1
    noise_step: Annotated[int, Field(ge=0, le=999, description="Diffusion step of the noisy picture."), TEXT_SIDE] = 500
    noise_seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of the first picture's noise."), TEXT_SIDE] = 0

    def prepare(self, ask: Ask) -> Ask:
        ask.prompt.require_pictures(self.name)
        return ask.branch(self, "noisy", self.noisy(ask.prompt))

    def noisy(self, prompt: Prompt) -> Prompt:
        seeds = count(self.noise_seed)
        return prompt.map_pictures(lambda picture: picture.noised(Noise(self.noise_step, next(seeds))))

    def logits(self, step: Step) -> Tensor:
        return only(contrast(step.scores, step.branches["vcd/noisy"], self.alpha), plausible(step.raw, self.beta))
