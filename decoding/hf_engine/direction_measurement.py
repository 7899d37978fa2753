"""Measure the directions from hallucinated to true captions in the hidden states of a model, for the strategy `vti`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from decoding.hf_engine.captions import CaptionImages, InvalidCaptions, encode_caption
from decoding.hf_engine.model.model import Model
from decoding.hf_engine.taps.steering import SteeringEdit
from decoding.tensor_hooks import LayerPlace
from decoding.text.prompt_encoder import ModelInputs

MIN_PAIRS = 3  # with two, the first principal axis has no sign


class CaptionPair(BaseModel):
    """A line of the file of pairs. Other fields are ignored."""

    model_config = ConfigDict(frozen=True)

    image_id: int | str
    caption: str = Field(min_length=1)
    hallucinated_caption: str = Field(min_length=1)

    @model_validator(mode="after")
    def check_difference(self) -> Self:
        """Refuse a pair of equal captions.

        Returns:
            The pair.

        Raises:
            ValueError: The captions are equal.
        """
        if self.caption == self.hallucinated_caption:
            raise ValueError("`caption` and `hallucinated_caption` are equal")
        return self


def measure_difference(model: Model, pair: CaptionPair, images: CaptionImages, question: str) -> Tensor:
    """Subtract the hidden states after a hallucinated caption from those after the true one, in two passes.

    Args:
        model: The model.
        pair: The captions.
        images: Folder of their image.
        question: Their prompt.

    Returns:
        [1 + layers, width], float64, at the last token of prompt and caption: before the first layer and after each.
    """
    states = []
    for caption in (pair.caption, pair.hallucinated_caption):
        tokens = model.encoder.tokenizer(caption, add_special_tokens=False)["input_ids"]
        inputs, _ = encode_caption(model, images, pair.image_id, question, tokens)
        states.append(read_last_states(model, inputs))
    return states[0] - states[1]


def read_last_states(model: Model, inputs: ModelInputs) -> Tensor:
    """Return the [1 + layers, width] float64 states at the last token: before the first layer and after each."""
    states: list[Tensor] = []

    def observe(place: LayerPlace, outputs: Tensor, layer_input: Tensor | None) -> Tensor:  # [1, width]
        if place.layer == 0 and layer_input is not None:
            states.append(layer_input[0].double().cpu())
        states.append(outputs[0].double().cpu())
        return outputs

    places = frozenset(LayerPlace("layer", layer, model.num_layers) for layer in range(model.num_layers))
    last = slice(len(inputs) - 1, len(inputs))
    edit = SteeringEdit(slice(0, 1), last, places, observe, reads_layer_input=True)
    with torch.inference_mode(), model.steering_tap.edit([edit]):
        model.prefill([inputs])
    return torch.stack(states)


def measure_directions(model: Model, pairs: Iterable[CaptionPair], images: CaptionImages, question: str) -> Tensor:
    """Measure the directions of all pairs.

    Args:
        model: The model.
        pairs: The pairs.
        images: Folder of their images.
        question: Their prompt.

    Returns:
        [layers, width], float32.
    """
    differences = [measure_difference(model, pair, images, question) for pair in pairs]
    return compute_directions(torch.stack(differences))[1:].float()


def compute_directions(differences: Tensor) -> Tensor:
    """Add the first principal axis of differences, of length 1 over all layers, to their mean.

    Args:
        differences: [pairs, layers, width], float64.

    Returns:
        [layers, width] directions.

    Raises:
        InvalidCaptions: There are too few pairs, or their differences are equal, so that there is no axis.
    """
    if len(differences) < MIN_PAIRS:
        raise InvalidCaptions(f"directions need at least {MIN_PAIRS} pairs of captions; there are {len(differences)}")
    flat = differences.flatten(1)
    mean = flat.mean(0)
    scores, sizes, axes = torch.linalg.svd(flat - mean, full_matrices=False)
    if not sizes[0] > 1e-6 * flat.norm():
        raise InvalidCaptions("the pairs change the hidden states alike, so that their changes have no principal axis")
    sign = scores[scores[:, 0].abs().argmax(), 0].sign()
    direction: Tensor = mean + sign * axes[0]
    return direction.view(differences.shape[1:])
