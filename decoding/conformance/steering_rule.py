"""The rule for the `steer` hook, which edits what leaves a part of a layer."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from decoding.conformance.hook_calls import HookError, Problems, call
from decoding.conformance.samples import DTYPES, LAYERS, MODEL_DEPTHS, WIDTH, Samples, collect_parameter_sets
from decoding.pipeline.steering import LAYER_INPUT
from decoding.strategy import PER_ROW, TEXT_SIDE, LayerPlace, Strategy, Tensors

TOKENS = 4


def check_steering(strategy_class: type[Strategy]) -> Problems:
    """Require that `steer` keeps the layout of the outputs, edits each token alone, and is neutral where declared."""
    if "steer" not in strategy_class.list_hooks():
        return
    for label, parameters in collect_parameter_sets(strategy_class).items():
        strategy = strategy_class(**parameters)
        if label != "largest":  # may name a layer that small models lack, which engines refuse by name
            yield from check_places(strategy, label)
        for dtype in DTYPES:
            yield from check_outputs(strategy, dtype, f"({label} parameters, {dtype})", is_neutral=label == "neutral")
    yield from check_steering_marks(strategy_class)


def check_places(strategy: Strategy, label: str) -> Problems:
    """Require that `steered_layers` selects layers that the model has."""
    for depth in MODEL_DEPTHS:
        found = call(strategy, "steered_layers", depth).layers
        if not all(0 <= layer < depth for layer in found):
            yield f"`steered_layers` returned {found} for a model of {depth} layers ({label} parameters)"


def check_outputs(strategy: Strategy, dtype: torch.dtype, case: str, *, is_neutral: bool) -> Problems:
    """Require valid results, that do not depend on the other tokens of a call."""
    samples = Samples(strategy)
    states = [draw_steering_state(strategy, samples, seed, dtype) for seed in range(TOKENS)]
    batch = {name: torch.stack([state[name] for state in states]) for name in states[0]}
    outputs = draw_outputs(dtype)
    for place in list_places(strategy):
        inputs = [outputs, *batch.values()]
        before = [tensor.clone() for tensor in inputs]
        after = call(strategy, "steer", outputs, place, batch)
        if not all(torch.equal(now, then) for now, then in zip(inputs, before, strict=True)):
            yield "`steer` modifies its input"
            return
        if not isinstance(after, Tensor):
            yield f"`steer` returned {type(after).__name__} instead of a tensor {case}"
        elif (after.shape, after.dtype) != (outputs.shape, dtype):
            yield f"`steer` returned {after.dtype} {list(after.shape)} instead of {dtype} {list(outputs.shape)} {case}"
        elif not after.isfinite().all():
            yield f"`steer` returned values that are not finite {case}"
        elif is_neutral and not torch.equal(after, outputs):
            yield f"`steer` changes outputs with neutral parameters {case}"
        else:
            yield from compare_tokens(strategy, outputs, place, states, after, case)


def compare_tokens(
    strategy: Strategy, outputs: Tensor, place: LayerPlace, states: list[Tensors], after: Tensor, case: str
) -> Problems:
    """Compare the result of a batch with the results of its tokens.

    Args:
        strategy: The strategy.
        outputs: [tokens, width].
        place: The part of the layer.
        states: State of each token.
        after: [tokens, width] result of the batch.
        case: Parameters and type.

    Yields:
        The problem, if there is one.
    """
    alone = [call(strategy, "steer", own, place, state) for own, state in zip(outputs, states, strict=True)]
    if not torch.allclose(after.float(), torch.stack(alone).float(), rtol=1e-3, atol=1e-3):
        yield f"`steer` gives tokens of a batch other values than alone {case}"


def check_steering_marks(strategy_class: type[Strategy]) -> Problems:
    """Require that `steer` and `steered_layers` read no parameter with a mark."""
    strategy = strategy_class()
    marked = strategy_class.find_marked_fields(TEXT_SIDE) | strategy_class.find_marked_fields(PER_ROW)
    without = strategy.model_copy(update=dict.fromkeys(marked))
    state, outputs = draw_steering_state(strategy, Samples(strategy)), draw_outputs(torch.float32)[0]
    try:
        is_equal = call(without, "steered_layers", LAYERS) == call(strategy, "steered_layers", LAYERS)
        for place in list_places(strategy):
            after = call(strategy, "steer", outputs, place, state)
            is_equal &= torch.equal(call(without, "steer", outputs, place, state), after)
    except HookError:
        is_equal = False
    if not is_equal:
        yield "`steer` or `steered_layers` reads a parameter whose mark excludes it"


def list_places(strategy: Strategy) -> Iterator[LayerPlace]:
    """List the places of a model of `LAYERS` layers on which a strategy acts."""
    steered = call(strategy, "steered_layers", LAYERS)
    return (LayerPlace(steered.part, layer, LAYERS) for layer in steered.layers if 0 <= layer < LAYERS)


def draw_steering_state(
    strategy: Strategy, samples: Samples, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Tensors:
    """Draw the state of one token that `steer` receives, with its [width] input of the layer if it reads one."""
    state = samples.fold_state(strategy, seed)
    if strategy.reads_layer_input:
        stream = 3 * torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
        state = {**state, LAYER_INPUT: stream.to(dtype)}
    return state


def draw_outputs(dtype: torch.dtype) -> Tensor:
    """Draw [tokens, width] outputs of a layer."""
    return (3 * torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))).to(dtype)
