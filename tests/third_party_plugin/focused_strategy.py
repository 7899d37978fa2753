"""A strategy that scales the attention heads whose output the image changes most."""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from onlyseen import Activations, GenerateRequest, ProbeRequest, Program, StateHandle, Strategy, Tensors


class Focused(Strategy):
    """Multiply the output of the heads above their layer's median of |A(with image) - A(without)| by `factor`."""

    name = "focused"
    paper = "none"
    neutral = {"factor": 1}
    needs_images = True

    factor: Annotated[float, Field(ge=0, le=10, description="Factor of the chosen heads; 1 changes nothing.")] = 1.5

    def run(self, request: GenerateRequest) -> Program:
        prompts = {"with": request.prompt, "without": request.prompt.without_images()}
        state: StateHandle = yield ProbeRequest(prompts, main="with")
        return request.with_state(state)

    def update_state(self, state: Tensors, activations: Activations) -> Tensors:
        change = (activations.heads["with"] - activations.heads["without"]).float().norm(dim=-1)  # [heads]
        scales = state.get("scales", change.new_ones(activations.layers, len(change))).clone()
        scales[activations.layer] = torch.where(change > change.median(), self.factor, 1.0)
        return {"scales": scales}

    def head_scales(self, state: Tensors) -> Tensor:
        return state["scales"]
