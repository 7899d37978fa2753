"""Runs a probe: its prompts in one pass, whose head outputs are folded into a memory layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from decoding.ask import Probe
from decoding.hf_engine.encoder import Encoded
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
        heads = {name: outputs[row, last[row]].to(model.device) for row, name in enumerate(names)}
        memory = probe.owner.digest(memory, Captured(heads=heads, layer=layer, layers=model.layers))
        factors = probe.owner.heads(memory) if probe.layerwise else None
        if factors is None:
            return outputs
        outputs = outputs.clone()
        outputs[main] *= factors[layer, :, None].to(outputs.device)
        return outputs

    prefilled = model.observe([prompts[name] for name in names], observe)
    factors = probe.owner.heads(memory)
    if factors is not None and not probe.layerwise:  # the caches were made without them
        return Remembered(memory)
    return Remembered(memory, probe.prompts[probe.main], prefilled[main], factors)
