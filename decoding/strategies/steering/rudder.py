"""RUDDER: add what the attention of a layer adds to the prompt to each token of the answer, as far as it agrees."""

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, softplus

from decoding.requests import GenerateRequest, ProbeRequest, StateHandle
from decoding.strategy import Activations, LayerPlace, Program, SteeredLayers, Strategy, Tensors

MIN_GATE = 0.05


class RUDDER(Strategy):
    """A(h) <- A(h) + strength g v in one layer, for the tokens of the answer.

    h, [width], is the residual stream that enters the layer, and A(h) what the attention of the layer adds to it.
    v = unit(mean_i A(h_i)) is the mean over all tokens of the prompt, image and text, in one pass of the plain model.
    With `pooling` "weighted", each token weighs as much as its A(h_i) is long. The gate is
    g = clamp(a / (a + b), 0.05, 1), with s = cos(h, v), a = softplus(k s + c), b = softplus(-k s + c), k `sharpness`
    and c `offset`. Without `adaptive`, g is 1, as in RUDDER-Add.

    The defaults are those for LLaVA-1.5-7B: layer 30 of 32. The paper has layer 28, `strength` 8 and `sharpness` 5 for
    Idefics2, and layer 1, `strength` 6.5 and `sharpness` 8 for InstructBLIP.

    Source: arXiv:2511.10292.

    Choices where the paper is open (there is no official code):
    - Layers count from 0.
    - The gate reads the stream before the attention, as in the paper's equation.
    - The layer is a share of the depth.
    """

    name = "rudder"
    paper = "arXiv:2511.10292"
    neutral = {"strength": 0}
    needs_images = True
    reads_layer_input: ClassVar[bool] = True

    strength: Annotated[float, Field(ge=0, le=1000, description="Length of what is added; 0 turns it off.")] = 20.0
    layer: Annotated[float, Field(ge=0, le=1, description="The edited layer, as a share of the depth.")] = 30 / 32
    adaptive: Annotated[bool, Field(description="Weight each token by its agreement with the prompt.")] = True
    sharpness: Annotated[float, Field(ge=0, le=100, description="Factor of the agreement in the gate.")] = 5.0
    offset: Annotated[float, Field(ge=0, le=100, description="Number that the gate adds to the agreement.")] = 1.0
    pooling: Annotated[
        Literal["mean", "weighted"], Field(description="Mean over the tokens of the prompt, plain or by length.")
    ] = "mean"

    def run(self, request: GenerateRequest) -> Program:
        probe = ProbeRequest({"prompt": request.prompt}, main="prompt", capture=frozenset({"attention_updates"}))
        state: StateHandle = yield probe
        return request.with_state(state)

    def select_layer(self, layers: int) -> int:
        """Return the edited layer of a model of `layers` layers."""
        return min(math.floor(self.layer * layers + 0.5), layers - 1)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        updates = activations.attention_updates["prompt"].float()
        if activations.layer != self.select_layer(activations.layers):
            return {"direction": state.get("direction", updates.new_zeros(updates.shape[-1]))}
        if self.pooling == "weighted":
            updates = updates * torch.linalg.vector_norm(updates, dim=-1, keepdim=True)
        return {"direction": normalize(updates.mean(dim=0), dim=0)}

    def steered_layers(self, layers: int) -> SteeredLayers:
        return SteeredLayers((self.select_layer(layers),), "attention", "answer")

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        if self.strength == 0:
            return outputs
        direction = state["direction"]
        added = self.strength * direction
        if self.adaptive:
            added = added * self.compute_gate(state["layer_input"].float(), direction)
        return (outputs.float() + added).to(outputs.dtype)

    def compute_gate(self, stream: Tensor, direction: Tensor) -> Tensor:
        """Compute the [..., 1] weights of tokens from the [..., width] stream and direction."""
        agreement = self.sharpness * torch.cosine_similarity(stream, direction, dim=-1)[..., None]
        towards, away = softplus(agreement + self.offset), softplus(-agreement + self.offset)
        gate: Tensor = (towards / (towards + away)).clamp(MIN_GATE, 1)
        return gate
