"""Places that strategies steer, in every family: the parts of a layer are what it adds to the residual stream."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from decoding.hf_engine.model.model import Model
from decoding.hf_engine.settings import HFSettings
from decoding.hf_engine.taps.steering import SteeringEdit
from decoding.tensor_hooks import LayerPlace
from tests.decoding.families.checkpoints import CHECKPOINTS
from tests.decoding.families.prompts import BLIND


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_outputs_of_the_parts_add_up_to_those_of_the_layer(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = Model(HFSettings(str(checkpoint(name)), device="cpu", dtype="float32"))
    prompt, layers = model.encoder.encode(BLIND), model.num_layers
    found: dict[LayerPlace, Tensor] = {}
    entering: dict[int, Tensor] = {}

    def record(place: LayerPlace, outputs: Tensor, layer_input: Tensor | None) -> Tensor:
        assert layer_input is not None
        found[place], entering[place.layer] = outputs.clone(), layer_input.clone()
        return outputs

    places = frozenset(
        LayerPlace(part, layer, layers)
        for part in ("feed_forward", "attention", "layer")
        for layer in range(layers)  # type: ignore[arg-type]
    )
    edit = SteeringEdit(slice(0, 1), slice(0, len(prompt)), places, record, reads_layer_input=True)
    with torch.inference_mode(), model.steering_tap.edit([edit]):
        model.prefill([prompt])
    assert found.keys() == places
    for layer in range(1, layers):
        parts = [found[LayerPlace(part, layer, layers)] for part in ("feed_forward", "attention")]  # type: ignore[arg-type]
        before, after = (found[LayerPlace("layer", number, layers)] for number in (layer - 1, layer))
        torch.testing.assert_close(entering[layer], before)
        torch.testing.assert_close(before + parts[0] + parts[1], after, rtol=1e-4, atol=1e-4)
