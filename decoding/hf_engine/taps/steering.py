"""Edit what leaves the parts of the decoder's layers, for single tokens of single rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from decoding.multimodal.model_families import ModelFamily
from decoding.tensor_hooks import LayerPart, LayerPlace


@dataclass(frozen=True, slots=True)
class SteeringEdit:
    """An edit of some tokens of some rows of a pass.

    Attributes:
        rows: [n] rows of the pass.
        tokens: Positions in the pass, m of each row.
        places: Places that are edited.
        steer: Function of a place, its [n * m, width] outputs, and as many inputs of the layer. The inputs are None
            unless they are read. It returns the edited outputs.
        reads_layer_input: Whether it reads the inputs of the layer.
    """

    rows: slice | Tensor
    tokens: slice
    places: frozenset[LayerPlace]
    steer: Callable[[LayerPlace, Tensor, Tensor | None], Tensor]
    reads_layer_input: bool = False

    def apply(self, place: LayerPlace, outputs: Tensor, layer_input: Tensor | None) -> None:
        """Edit [rows, tokens, width] outputs of a place in place. The inputs of the layer have the same shape."""
        rows = self.rows if isinstance(self.rows, slice) else self.rows.to(outputs.device)
        own = outputs[rows, self.tokens].clone()  # an edit may return its input, which must not be written into itself
        own_input = None
        if self.reads_layer_input and layer_input is not None:
            own_input = layer_input[rows, self.tokens].flatten(0, 1)
        outputs[rows, self.tokens] = self.steer(place, own.flatten(0, 1), own_input).view_as(own)


class SteeringTap:
    """Taps the parts of layers that some row steers, for the length of one pass."""

    def __init__(self, decoder: Any, family: ModelFamily) -> None:
        self._layers: Sequence[Any] = decoder.layers
        self._paths = {"feed_forward": family.feed_forward_path, "attention": family.attention_path}

    @contextmanager
    def edit(self, edits: Sequence[SteeringEdit]) -> Iterator[None]:
        """Apply edits within the block."""
        inputs: dict[int, Tensor] = {}  # layer -> [rows, tokens, width]
        read = {place.layer for edit in edits if edit.reads_layer_input for place in edit.places}
        with ExitStack() as stack:
            for layer in read:
                tap = build_input_tap(layer, inputs)
                stack.callback(self._layers[layer].register_forward_pre_hook(tap, with_kwargs=True).remove)
            for place in frozenset[LayerPlace]().union(*(edit.places for edit in edits)):
                own = [edit for edit in edits if place in edit.places]
                handle = self._find_module(place.part, place.layer).register_forward_hook(build_tap(place, own, inputs))
                stack.callback(handle.remove)
            yield

    def _find_module(self, part: LayerPart, layer: int) -> Any:
        path = self._paths.get(part)
        return self._layers[layer] if path is None else reduce(getattr, path.split("."), self._layers[layer])


def build_input_tap(layer: int, inputs: dict[int, Tensor]) -> Callable[..., None]:
    """Build the torch hook that stores what enters a layer."""

    def store_input(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        inputs[layer] = args[0] if args else kwargs["hidden_states"]

    return store_input


def build_tap(place: LayerPlace, edits: Sequence[SteeringEdit], inputs: Mapping[int, Tensor]) -> Callable[..., Any]:
    """Build the torch hook of one place. The outputs of modules that return several values come first."""

    def edit_outputs(_: torch.nn.Module, __: tuple[Any, ...], outputs: Any) -> Any:
        hidden: Tensor = outputs[0] if isinstance(outputs, tuple) else outputs
        edited = hidden.clone()
        for edit in edits:
            edit.apply(place, edited, inputs.get(place.layer))
        return (edited, *outputs[1:]) if isinstance(outputs, tuple) else edited

    return edit_outputs
