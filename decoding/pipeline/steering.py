"""Apply the `steer` hooks of a stack of strategies to what leaves a part of a layer, inner strategies first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from decoding.errors import BadRequest
from decoding.pipeline.attention_hooks import StatefulStack
from decoding.pipeline.composition import attribute_errors, check_layout
from decoding.pipeline.logits_hooks import Failures, isolate_failures
from decoding.tensor_hooks import LayerPlace, TensorHooks, Tensors

LAYER_INPUT = "layer_input"  # in the state of a strategy that reads it


def select_steering_stack(stack: Sequence[TensorHooks], states: Mapping[str, Tensors]) -> StatefulStack:
    """Select the strategies of a request that steer.

    Args:
        stack: Strategies, outermost first.
        states: Strategy name -> its state, tensors of any [*shape].

    Returns:
        The strategies with their states, innermost first.
    """
    return [
        (strategy, states.get(strategy.name, {})) for strategy in reversed(stack) if "steer" in strategy.list_hooks()
    ]


def select_prompt_steering(stack: StatefulStack, num_layers: int) -> StatefulStack:
    """Select the strategies that also steer the tokens of the prompt."""
    return [(strategy, state) for strategy, state in stack if strategy.steered_layers(num_layers).acts_on_prompt]


def reads_layer_input(stack: StatefulStack) -> bool:
    """Return whether a strategy reads the residual stream that enters a layer."""
    return any(strategy.reads_layer_input for strategy, _ in stack)


def expand_steering_stack(stack: StatefulStack, count: int) -> StatefulStack:
    """Repeat the states of one request, [*shape], for several tokens: [count, *shape], without a copy."""
    return [
        (strategy, {name: tensor.expand(count, *tensor.shape) for name, tensor in state.items()})
        for strategy, state in stack
    ]


def find_steered_places(stack: StatefulStack, num_layers: int) -> frozenset[LayerPlace]:
    """Find the places where a stack steers.

    Args:
        stack: Strategies that steer.
        num_layers: Layers of the model.

    Returns:
        The places of all strategies.

    Raises:
        BadRequest: A strategy selects a layer that the model does not have.
    """
    places: set[LayerPlace] = set()
    for strategy, _ in stack:
        with attribute_errors(strategy):
            steered = strategy.steered_layers(num_layers)
        for layer in steered.layers:
            if not 0 <= layer < num_layers:
                raise BadRequest(
                    f"'{strategy.name}' steers layer {layer}; the model has the layers 0 to {num_layers - 1}.",
                    param=f"decoding.{strategy.name}",
                )
            places.add(LayerPlace(steered.part, layer, num_layers))
    return frozenset(places)


def steer_outputs(
    stack: StatefulStack, place: LayerPlace, outputs: Tensor, layer_input: Tensor | None = None
) -> tuple[Tensor, Failures]:
    """Edit the outputs of one place. A hook that fails, fails its own row.

    Args:
        stack: Strategies of rows with equal batch keys, with states of [rows, *shape].
        place: The part of the layer.
        outputs: [rows, width].
        layer_input: [rows, width] residual stream that enters the layer, if a strategy reads it.

    Returns:
        [rows, width] outputs, and number of a row -> exception. Rows that fail keep their outputs.
    """
    edited = outputs

    def call(numbers: Sequence[int]) -> None:
        nonlocal edited
        if len(numbers) == len(outputs):
            edited = apply_steering_hooks(stack, place, outputs, layer_input)
            return
        (number,) = numbers
        row = slice(number, number + 1)
        own_stack = [(strategy, {name: tensor[row] for name, tensor in state.items()}) for strategy, state in stack]
        own_input = None if layer_input is None else layer_input[row]
        own = apply_steering_hooks(own_stack, place, outputs[row], own_input)
        edited = torch.cat([edited[:number], own, edited[number + 1 :]])

    failures = isolate_failures(range(len(outputs)), call)
    return edited, failures


def apply_steering_hooks(
    stack: StatefulStack, place: LayerPlace, outputs: Tensor, layer_input: Tensor | None = None
) -> Tensor:
    """Apply the hooks to all rows. `StrategyFailed` names a strategy whose hook raises or does not keep the layout.

    Args:
        stack: Strategies with their states.
        place: The part of the layer.
        outputs: [rows, width].
        layer_input: [rows, width] residual stream that enters the layer, if a strategy reads it.

    Returns:
        [rows, width].
    """
    for strategy, state in stack:
        with attribute_errors(strategy):
            steered = strategy.steered_layers(place.layers)
            if steered.part != place.part or place.layer not in steered.layers:
                continue
            own = {name: tensor.to(outputs.device) for name, tensor in state.items()}
            if strategy.reads_layer_input and layer_input is not None:
                own[LAYER_INPUT] = layer_input
            edited = strategy.steer(outputs, place, own)
        outputs = check_layout(strategy, edited, outputs, "steer")
    return outputs
