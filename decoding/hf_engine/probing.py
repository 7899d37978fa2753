"""Runs a probe: its prompts in one pass, whose head outputs are folded into a memory layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from decoding.ask import Probe
from decoding.encoder import Encoded
from decoding.errors import Unsupported
from decoding.hf_engine.attention import Edit
from decoding.hf_engine.model import Model
from decoding.hf_engine.request import Remembered
from decoding.strategy import Captured, Tensors


def run(probe: Probe, prompts: Mapping[str, Encoded], model: Model) -> Remembered:
    names = list(prompts)
    last = [len(prompts[name]) - 1 for name in names]
    main = names.index(probe.main)
    memory: Tensors = {}

    def observe(layer: int, outputs: Tensor) -> Tensor:
        nonlocal memory
        vision = by_prompt(seen, prompts) if seen else {}
        heads = {name: outputs[row, last[row]].to(model.device) for row, name in enumerate(names)}
        memory = probe.owner.digest(memory, Captured(heads, layer, model.layers, vision, dict(attention)))
        factors = probe.owner.heads(memory) if probe.layerwise else None
        if factors is None:
            return outputs
        outputs = outputs.clone()
        outputs[main] *= factors[layer, :, None].to(outputs.device)
        return outputs

    attention: dict[str, Tensor] = {}  # prompt -> [heads, picture tokens] in the layer that has just run
    places = [(prompts[name].ids == model.picture_token).nonzero().flatten().to(model.device) for name in names]

    def notice(_: int, weights: Tensor) -> None:
        found = zip(names, weights, places, strict=True)
        attention.update({name: own[:, at.to(own.device)].to(model.device) for name, own, at in found})

    watched = Edit(slice(None), torch.tensor(last, device=model.device), notice=notice)
    edits = [watched] if "attention" in probe.capture else []
    with watching(probe, model) as seen, model.attention.edited_by(edits):
        prefilled = model.observe([prompts[name] for name in names], observe)
    factors = probe.owner.heads(memory)
    edited = factors is not None and not probe.layerwise
    if edited or "attend" in probe.owner.hooks():  # the caches were made without
        return Remembered(memory)
    kept = replace(prefilled[main], pairs=prefilled[main].own())
    return Remembered(memory, probe.prompts[probe.main], kept, factors)


def watching(probe: Probe, model: Model) -> AbstractContextManager[list[Tensor]]:
    """Fills with what the vision tower attends to, if the probe wants it.

    Raises:
        Unsupported: the tower has no class token, or the language model no token for each of its patches.
    """
    if "vision" not in probe.capture:
        return nullcontext([])
    if model.vision is None:
        raise Unsupported(
            f"'{probe.owner.name}' needs a vision tower with a class token, and a token for each patch; "
            f"models of type '{model.network.config.model_type}' have none that it could read.",
            param="decoding.strategy",
            code="unsupported",
        )
    return model.vision.watched()


def by_prompt(seen: Sequence[Tensor], prompts: Mapping[str, Encoded]) -> dict[str, Tensor]:
    """[tower layers, pictures, heads, patches] of each prompt; the tower had the pictures of all, in their order."""
    counts = [len(prompt.extras["pixel_values"]) if prompt.extras else 0 for prompt in prompts.values()]
    return dict(zip(prompts, torch.split(torch.stack(list(seen)), counts, dim=1), strict=True))
