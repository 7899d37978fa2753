"""Visual contrastive decoding: subtract logits computed on a noised image."""

from itertools import count
from typing import Annotated

from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import Contrast
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest, Noise, Prompt
from decoding.strategy import TEXT_SIDE, Step


class VCD(PlausibleContrast):
    """z_f = (1 + alpha) z - alpha z_noisy where p(w) >= beta max p, -inf elsewhere.

    z and z_noisy are [vocab]. z_noisy comes from the same text and an image after `noise_step` + 1 of 1000 steps of
    forward diffusion, applied after normalization: x_t = sqrt(a_t) x + sqrt(1 - a_t) eps. Logits that do not depend on
    the image cancel.

    Source: Leng et al., CVPR 2024, arXiv:2311.16922.

    Deviations from the official code:
    - Greedy decoding is contrasted too. The code patches `sample()` only, and runs the plain model without sampling.
    - alpha is 1 for every model, as in the paper. The code's InstructBLIP script does not pass it and runs at 0.5.
    - The noise of an image follows from `noise_seed` and its place in the prompt, so that an answer can be repeated.
    """

    name = "vcd"
    paper = "arXiv:2311.16922"
    official_code = "DAMO-NLP-SG/VCD, licence not checked"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Contrast = 1.0
    noise_step: Annotated[int, Field(ge=0, le=999, description="Diffusion step of the noised image."), TEXT_SIDE] = 500
    noise_seed: Annotated[int, Field(ge=0, lt=2**31, description="Seed of the first image's noise."), TEXT_SIDE] = 0

    def prepare(self, request: GenerateRequest) -> GenerateRequest:
        return request.with_branch("noisy", self.add_noise(request.prompt))

    def add_noise(self, prompt: Prompt) -> Prompt:
        """Add noise to every image, each with a seed of its own."""
        seeds = count(self.noise_seed)
        return prompt.map_images(lambda image: image.with_noise(Noise(self.noise_step, next(seeds))))

    def contrast(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["noisy"], self.alpha)
