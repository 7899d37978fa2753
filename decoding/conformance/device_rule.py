"""The rule that tensor hooks run on a GPU as they do on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decoding.conformance.hook_calls import HookError, Problems, call
from decoding.conformance.samples import (
    Samples,
    batch_steps,
    collect_parameter_sets,
    draw_activations,
    draw_attention,
)
from decoding.conformance.simulated_device import DEVICE, copy_all_to_device, copy_to_device, simulate_device
from decoding.conformance.steering_rule import draw_outputs, draw_steering_state, list_places
from decoding.requests import GenerateRequest, ProbeRequest
from decoding.strategy import Activations, AttentionKeys, Step, Strategy, Tensors

DTYPE = torch.bfloat16  # of most models on a GPU
CAUSE = "it copies a value from the host, waits for a value, or makes a tensor on the host"


def check_device(strategy_class: type[Strategy]) -> Problems:
    """Require that hooks compute on the device of their inputs, and never make the host wait for a value."""
    for label, parameters in collect_parameter_sets(strategy_class).items():
        strategy = strategy_class(**parameters)
        try:
            yield from (f"{problem} ({label} parameters)" for problem in run_hooks_on_device(strategy))
        except HookError as error:
            yield f"{error}; on a GPU {CAUSE} ({label} parameters)"


def run_hooks_on_device(strategy: Strategy) -> Problems:
    """Call every hook with tensors of the simulated device, and name the hooks with results on the host."""
    samples = Samples(strategy)
    one = samples.step(strategy, DTYPE)
    batch = batch_steps([samples.step(strategy, DTYPE, seed) for seed in range(2)])
    scores, keys = draw_attention(DTYPE)
    probes = [
        [*draw_activations(request, seed=1)]
        for request in samples.requests
        if isinstance(request, ProbeRequest) or (isinstance(request, GenerateRequest) and request.updates_state)
    ]
    with simulate_device():
        for step in map(copy_step_to_device, (one, batch)):
            yield from call_on_device(strategy, "logits", step)
            yield from call_on_device(strategy, "needs_branches", step.raw)
            yield from call_on_device(strategy, "head_scales", step.state)
        state = copy_all_to_device(one.state)
        yield from call_on_device(strategy, "keep_image_tokens", state)
        device_keys = AttentionKeys(
            copy_to_device(keys.image_token_index),
            keys.layer,
            keys.layers,
            copy_to_device(keys.is_generated),
            copy_to_device(keys.is_visible),
            copy_all_to_device(keys.statistics),
        )
        for hook in ("edit_attention_scores", "gate_heads"):
            yield from call_on_device(strategy, hook, copy_to_device(scores), device_keys, state)
        for place in list_places(strategy):
            steered = copy_all_to_device(draw_steering_state(strategy, samples))
            yield from call_on_device(strategy, "steer", copy_to_device(draw_outputs(DTYPE)[0]), place, steered)
        for probe in probes:
            folded: Tensors = {}
            for activations in map(copy_activations_to_device, probe):
                folded = call(strategy, "update_state", folded, activations)
            yield from (
                f"`update_state` returned '{name}' on the host" for name in folded if folded[name].device != DEVICE
            )


def call_on_device(strategy: Strategy, hook: str, *arguments: Any) -> Problems:
    """Call a hook whose result is one tensor, or None."""
    result: Tensor | None = call(strategy, hook, *arguments)
    if result is not None and result.device != DEVICE:
        yield f"`{hook}` returned a tensor on the host"


def copy_step_to_device(step: Step) -> Step:
    return Step(
        copy_to_device(step.scores),
        copy_to_device(step.raw),
        copy_all_to_device(step.branches),
        copy_all_to_device(step.state),
        copy_to_device(step.position),
        None if step.early_logits is None else copy_to_device(step.early_logits),
    )


def copy_activations_to_device(activations: Activations) -> Activations:
    return replace(
        activations,
        heads=copy_all_to_device(activations.heads),
        vision_attention=copy_all_to_device(activations.vision_attention),
        attention=copy_all_to_device(activations.attention),
        hidden_states=copy_all_to_device(activations.hidden_states),
        attention_updates=copy_all_to_device(activations.attention_updates),
        logits=None if activations.logits is None else copy_to_device(activations.logits),
    )
