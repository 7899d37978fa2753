"""Dive into attention: subtract logits computed with the image tokens of the vision tower's outliers only."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.logits_ops import contrast
from decoding.parameters import Contrast
from decoding.plausible_contrast import PlausibleContrast
from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, Program, Step, Tensors


class DAMRO(PlausibleContrast):
    """z_f = (1 + alpha) z - alpha z_outlier where p(w) >= beta max p, -inf elsewhere.

    z_outlier, [vocab], comes from the same prompt. Its branch sees only the `kept` tokens of each image to which the
    class token of the vision tower attends most, in the last layer but one. These patches hold global content, and draw
    attention whatever the image shows.

    Patches are ranked as in the code, by the product of query and key over the full width of the layer. The captured
    attention p_h of single heads gives the same order, as sum_h ln p_h(j): the normalizers are equal for all patches.

    Source: Gong et al., EMNLP 2024, arXiv:2410.04514. The defaults are those of the code for LLaVA-1.5.

    Deviations from the official code:
    - This is a variant. Kept tokens stay at their places, in their order in the image, and the text stays at its own.
      The code has the tokens in descending order of attention, at places next to each other, and the text follows at
      once. So the rotary positions differ.
    - The layer is the last but one. The code has the layer whose output the model uses. For LLaVA both are the same.
    - InstructBLIP is refused. There the code keeps 4 patches before the Q-Former, and has alpha 0.5 (POPE) or 1.5. For
      LLaVA-NeXT the code keeps patches of the small image only.
    - Each of several images keeps its own tokens.
    """

    name = "damro"
    paper = "arXiv:2410.04514"
    official_code = "coder-gx/DAMRO, MIT in its README"
    neutral = {"alpha": 0, "beta": 0}
    needs_images = True

    alpha: Contrast = 2.0
    kept: Annotated[
        int, Field(ge=1, le=10_000, description="Number of tokens of each image that the branch keeps.")
    ] = 10

    def run(self, request: GenerateRequest) -> Program:
        probe = ProbeRequest({"with_image": request.prompt}, main="with_image", capture=frozenset({"vision_attention"}))
        state: StateHandle = yield probe
        return request.with_branch("outlier", request.prompt).with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        if state:
            return state
        kept = self.select_outliers(activations.vision_attention["with_image"])
        return {"kept_tokens": kept.flatten().repeat(activations.layers, 1)}

    def select_outliers(self, attention: Tensor) -> Tensor:
        """Select the patches that the branch keeps.

        Args:
            attention: [tower layers, images, heads, patches] attention of the class token.

        Returns:
            [images, patches] mask.
        """
        late = attention[max(len(attention) - 2, 0)].float()
        ranks = late.clamp(min=torch.finfo(torch.float32).tiny).log().sum(dim=1)  # [images, patches]
        outliers = ranks.topk(min(self.kept, ranks.shape[-1]), dim=-1).indices
        return torch.zeros_like(ranks, dtype=torch.bool).scatter(-1, outliers, True)

    def keep_image_tokens(self, state: Tensors) -> Tensor:
        return state["kept_tokens"]

    def contrast(self, step: Step) -> Tensor:
        return contrast(step.scores, step.branches["outlier"], self.alpha)
