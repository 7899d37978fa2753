"""Steering vectors: add a vector from a file to what leaves a layer."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from decoding.parameters import FirstLayerShare, LastLayerShare, LayerRange, SteeredPositions, VectorsFile
from decoding.requests import GenerateRequest, StateHandle, VectorsRequest
from decoding.strategy import LayerPlace, Program, SteeredLayers, Strategy, Tensors


class Steer(LayerRange, Strategy):
    """x <- x + strength v_l for the outputs x, [width], of a part of layer l, with its vector v_l from a file.

    The part is the layer itself (`layer`: the residual stream after it), or what its attention or its feed-forward
    network adds to the stream. With `normalize`, the result is scaled back to the length of x. `positions` is `all`, or
    `answer` for the tokens of the answer alone, which leaves the prompt as it is. Layers go from `first` to `last`, as
    shares of the depth.

    The operator puts files into the folder of `--steering-vectors`. A safetensors file has a tensor `vectors`,
    [layers, width], or tensors `direction.L`, [width], for some layers L from 0. A layer without a vector is not
    steered.

    Source: Turner et al., arXiv:2308.10248, for the addition of a vector. How the vectors are made is the operator's.

    Deviations from the paper:
    - The paper adds a vector at the first tokens of a prompt. Here every token of `positions` gets it, as is usual.
    """

    name = "steer"
    paper = "arXiv:2308.10248"
    neutral = {"strength": 0}

    vectors: VectorsFile = "steer.safetensors"
    strength: Annotated[float, Field(ge=-1000, le=1000, description="Factor of the vectors; 0 turns them off.")] = 1.0
    part: Annotated[
        Literal["feed_forward", "attention", "layer"], Field(description="Part of the layers whose output is steered.")
    ] = "layer"
    positions: SteeredPositions = "all"
    normalize: Annotated[bool, Field(description="Keep the length of what is steered.")] = False
    first: FirstLayerShare = 0.0
    last: LastLayerShare = 1.0

    def run(self, request: GenerateRequest) -> Program:
        state: StateHandle = yield VectorsRequest(self.vectors, f"decoding.{self.name}.vectors")
        return request.with_state(state)

    def steered_layers(self, layers: int) -> SteeredLayers:
        return SteeredLayers(tuple(self.select_layers(layers)), self.part, self.positions)

    def steer(self, outputs: Tensor, place: LayerPlace, state: Tensors) -> Tensor:
        if self.strength == 0:
            return outputs
        before = outputs.float()
        after = before + self.strength * state["vectors"][..., place.layer, :]
        if self.normalize:
            after = rescale(after, before)
        return after.to(outputs.dtype)


def rescale(after: Tensor, before: Tensor) -> Tensor:
    """Scale [..., width] vectors to the lengths of others. A vector of length 0 stays."""
    old, new = (torch.linalg.vector_norm(each, dim=-1, keepdim=True) for each in (before, after))
    rescaled: Tensor = after * (old / new.clamp_min(1e-20))
    return rescaled
