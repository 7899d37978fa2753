"""Run a probe: its prompts in one pass, whose activations are folded into a strategy state layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from decoding.hf_engine.model.model import Model
from decoding.hf_engine.strategy_state import StoredStrategyState
from decoding.hf_engine.taps.attention import AttentionEdit
from decoding.pipeline.composition import attribute_errors
from decoding.requests import ProbeRequest
from decoding.tensor_hooks import Activations, Tensors
from decoding.text.prompt_encoder import ModelInputs


def run_probe(probe: ProbeRequest, prompts: Mapping[str, ModelInputs], model: Model) -> StoredStrategyState:
    """Run a probe.

    Args:
        probe: The probe.
        prompts: Its prompts by name, encoded.
        model: The model.

    Returns:
        The strategy's state. If a request with the same prompt can continue from this pass, also the main prompt's
        prefill output.
    """
    names = list(prompts)
    newest = [len(prompts[name]) - 1 for name in names]
    main = names.index(probe.main)
    state: Tensors = {}
    attention: dict[str, Tensor] = {}  # prompt -> [heads, image tokens] in the layer that has just run

    def observe_heads(layer: int, outputs: Tensor) -> Tensor:  # [prompts, length, heads, head_dim], as the result
        nonlocal state
        vision = split_by_prompt(vision_attention, prompts) if vision_attention else {}
        heads = {name: outputs[row, newest[row]].to(model.device) for row, name in enumerate(names)}
        activations = Activations(heads, layer, model.num_layers, vision, dict(attention))
        with attribute_errors(probe.strategy):
            state = probe.strategy.update_state(state, activations)
            scales = probe.strategy.head_scales(state) if probe.layerwise else None
        if scales is None:
            return outputs
        outputs = outputs.clone()
        outputs[main] *= scales[layer, :, None].to(outputs.device)
        return outputs

    is_image = [prompts[name].ids == model.image_token_id for name in names]
    image_positions = [mask.nonzero().flatten().to(model.device) for mask in is_image]

    def observe_attention(_: int, weights: Tensor) -> None:  # [prompts, heads, keys]
        for name, own, positions in zip(names, weights, image_positions, strict=True):
            attention[name] = own[:, positions.to(own.device)].to(model.device)

    edit = AttentionEdit(slice(None), torch.tensor(newest, device=model.device), observe_weights=observe_attention)
    edits = [edit] if "attention" in probe.capture else []
    with capture_vision_attention(probe, model) as vision_attention, model.attention_tap.edit(edits):
        outputs = model.prefill_observed([prompts[name] for name in names], observe_heads)
    with attribute_errors(probe.strategy):
        scales = probe.strategy.head_scales(state)
    is_scaled_later = scales is not None and not probe.layerwise
    if is_scaled_later or "edit_attention_scores" in probe.strategy.hooks():  # the KV states were computed without
        return StoredStrategyState(state)
    output = replace(outputs[main], key_values=outputs[main].clone_key_values())
    return StoredStrategyState(state, probe.prompts[probe.main], output, scales)


def capture_vision_attention(probe: ProbeRequest, model: Model) -> AbstractContextManager[list[Tensor]]:
    """Capture the vision tower's attention, if the probe needs it. The list fills while the tower runs."""
    if "vision" not in probe.capture:
        return nullcontext([])
    assert model.vision_attention_tap is not None, "the engine has checked its capabilities"
    return model.vision_attention_tap.capture()


def split_by_prompt(attention: Sequence[Tensor], prompts: Mapping[str, ModelInputs]) -> dict[str, Tensor]:
    """Split the tower's attention by prompt. The tower had the images of all prompts, in their order.

    Args:
        attention: For each layer of the tower [images, heads, patches].
        prompts: Prompts of the pass by name.

    Returns:
        Name of a prompt -> [tower layers, images, heads, patches].
    """
    counts = [len(prompt.extras["pixel_values"]) if prompt.extras else 0 for prompt in prompts.values()]
    return dict(zip(prompts, torch.split(torch.stack(list(attention)), counts, dim=1), strict=True))
