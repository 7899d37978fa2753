"""VISTA: steer every layer towards what the image adds to the prompt, and mix in the logits of late layers."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategies.steering.rotation import rotate
from decoding.strategy import Activations, EarlyExits, LayerPlace, Program, SteeredLayers, Step, Strategy, Tensors

EARLY_SHARE = 26 / 32  # of the layers, after which the early logits begin


class VISTA(Strategy):
    """f_l <- |f_l| unit(f_l / |f_l| + w v_l / |v_l|), then z_f = (1 - gamma) z + gamma mean_l z_l.

    w = strength (1 + max(0, cos(f_l, -v_l))). f_l, [width], is what the feed-forward network of layer l adds to the
    residual stream. v_l is the hidden state after layer l at the last token of the prompt, minus the same without the
    image tokens. Two passes of the unsteered model give it. All layers and all tokens of prompt and answer are steered.
    z_l, [vocab], is the output of the model's head on the hidden state after layer l, without the final norm. The mean
    is over 26 ... 31 of 32 layers passed.

    The paper has `strength` 0.17 for captions (LLaVA-1.5, InstructBLIP), 0.12 for Shikra, 0.1 for MiniGPT-4 and MMHal,
    and 0.01 for POPE.

    Source: Li et al., ICML 2025, arXiv:2502.03628.

    Deviations from the paper and the official code:
    - The paper adds the vector to the hidden state after a layer at each generated token, and restores its length. The
      code edits the outputs of feed-forward networks, at every token, in the form above. So does this.
    - The paper averages 5 layers before the last one. The code has six: 26 ... 31.
    - The code puts v through a principal component analysis, which with one example adds 1 to the first number of v in
      the first layer. The paper and this do not.
    - The layers of the mean follow the depth of the model. The code has numbers.
    """

    name = "vista"
    paper = "arXiv:2502.03628"
    official_code = "LzVv123456/VISTA, MIT"
    neutral = {"strength": 0, "gamma": 0}
    needs_images = True

    strength: Annotated[float, Field(ge=0, le=10, description="Weight of the steering; 0 turns it off.")] = 0.17
    gamma: Annotated[float, Field(ge=0, le=1, description="Weight of the logits of late layers; 0 turns them off.")] = (
        0.3
    )

    def run(self, request: GenerateRequest) -> Program:
        pair = {"with_image": request.prompt, "without_image": request.prompt.without_images()}
        state: StateHandle = yield ProbeRequest(pair, main="with_image", capture=frozenset({"hidden_states"}))
        return request.with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        hidden = activations.hidden_states
        vector = hidden["with_image"].float() - hidden["without_image"].float()
        vectors = state.get("vectors", vector.new_zeros(activations.layers, len(vector))).clone()
        vectors[activations.layer] = vector
        return {"vectors": vectors}

    def steered_layers(self, layers: int) -> SteeredLayers:
        return SteeredLayers(tuple(range(layers)), "feed_forward")

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        if self.strength == 0:
            return outputs
        vector = state["vectors"][..., place.layer, :]
        cosine = torch.cosine_similarity(outputs.float(), vector, dim=-1)
        return rotate(outputs, vector, self.strength * (1 + (-cosine).clamp_min(0)[..., None]))

    def early_exit_layers(self, layers: int, tied: bool) -> EarlyExits:
        first = min(math.floor(EARLY_SHARE * layers + 0.5), layers - 1)
        return EarlyExits(tuple(range(first, layers)), normed=False)

    def logits(self, step: Step) -> Tensor:
        if self.gamma == 0:
            return step.scores
        assert step.early_logits is not None, "the strategy selects early layers"
        early = step.early_logits.mean(dim=-2)
        mixed = (1 - self.gamma) * step.scores + self.gamma * early
        return mixed.masked_fill(step.scores == -torch.inf, -torch.inf).to(step.scores.dtype)
