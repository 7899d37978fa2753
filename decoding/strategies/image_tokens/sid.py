"""Self-introspective decoding: subtract logits computed with the least attended image tokens only."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import Contrast
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, Program, Step, Tensors


class SID(PlausibleContrast):
    """z_f = (1 + alpha) z - alpha z_least where p(w) >= beta max p, -inf elsewhere.

    z_least comes from the same prompt. From layer number `layer` on, its branch keeps only the share `kept` of the
    image tokens. These are the tokens that the last token of the prompt attends to least. The attention is that of the
    layer before, as the mean over its heads ([image tokens]). The few tokens that are left carry vague content, which
    brings out the influence of the language.

    The branch drops tokens: from `layer` on, the pass over its prompt has no rows for them. This equals a mask over
    their keys, because no remaining token attends to them. The choice costs no pass of its own. Up to `layer` the
    branch equals the main prompt, and the answer continues from that pass.

    Source: Huo et al., ICLR 2025, arXiv:2408.02032.

    Deviations from the official code:
    - alpha is 1, as its author states. The code's effective alpha is 0.5, to which its sampler falls back. So `alpha`
      0.5 gives the strength of the code.
    - With its option `--sample-greedy`, the code takes the argmax of the contrasted logits without the plausibility
      cut. `beta` 0 at temperature 0 does so.
    - The code masks tokens instead of dropping them, saves no computation, and chooses anew at every token. Its
      dropping variant is reported not to work with a cache. Here the choice is made once, at the end of the prompt.
    - `kept` is a share, about a tenth as in the paper. The code has numbers, of 576: 100 for POPE, 50 for captions.
    - Tokens of several images are ranked together.
    """

    name = "sid"
    paper = "arXiv:2408.02032"
    official_code = "huofushuo/SID, no licence"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Contrast = 1.0
    kept: Annotated[float, Field(ge=0, le=1, description="Share of the image tokens that the branch keeps.")] = 0.1
    layer: Annotated[
        int, Field(ge=1, le=1000, description="Number of the first layer that drops the others, from 0.")
    ] = 2

    def run(self, request: GenerateRequest) -> Program:
        probe = ProbeRequest({"with_image": request.prompt}, main="with_image", capture=frozenset({"attention"}))
        state: StateHandle = yield probe
        return request.with_branch("least", request.prompt).with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        attention = activations.attention["with_image"].mean(dim=0)  # [image tokens]
        everything = torch.ones(activations.layers, len(attention), dtype=torch.bool, device=attention.device)
        kept_tokens = state.get("kept_tokens", everything)
        if activations.layer != min(self.layer, activations.layers) - 1:
            return {"kept_tokens": kept_tokens}
        least = attention.topk(int(self.kept * len(attention)), largest=False).indices
        kept = torch.zeros_like(kept_tokens[0]).scatter(0, least, True)
        later = torch.arange(activations.layers, device=kept_tokens.device)[:, None] >= self.layer
        return {"kept_tokens": ~later | kept}

    def keep_image_tokens(self, state: Tensors) -> Tensor:
        return state["kept_tokens"]

    def contrast(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["least"], self.alpha)
