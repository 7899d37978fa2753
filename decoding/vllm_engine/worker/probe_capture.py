"""Capture of a probe: it folds activations of its prompts' last tokens into a strategy state, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from decoding.pipeline.probe_fold import ProbeFold
from decoding.tensor_hooks import Activations, Tensors
from decoding.vllm_engine.member import ProbeSpec
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.step_rows import StepRows


class ProbeCapture:
    """The capture of one probe during the pass of its step. The head tap calls it in each layer.

    All its prompts run whole in this step. Each layer sees the last tokens of all prompts, and its scales reach all
    tokens of the main prompt before the next layer runs.

    Args:
        spec: The probe.
        rows_by_name: Prompt name -> row of the step.
        rows: Rows of the step.
        num_layers: Number of layers of the model.
        captured_attention: Row -> [heads, image tokens] of the layer that has just run. It is read if the probe
            captures attention.
        vision_attention: Prompt name -> [tower layers, images, heads, patches].
        shards: The heads that this process runs.
    """

    def __init__(
        self,
        spec: ProbeSpec,
        rows_by_name: Mapping[str, int],
        rows: StepRows,
        num_layers: int,
        captured_attention: Mapping[int, Tensor],
        vision_attention: Tensors,
        shards: HeadShards,
    ) -> None:
        main = rows_by_name[spec.main]
        self.spec = spec
        self.probe_fold = ProbeFold(spec.strategy.build(), spec.layerwise)
        self.num_layers = num_layers
        self.request_id = rows.request_ids[main]
        self._rows_by_name = rows_by_name if "attention" in spec.capture else {}
        self._captured_attention = captured_attention
        self._vision_attention = vision_attention
        self._shards = shards
        self._activations = Activations()
        self.captures_hidden_states = "hidden_states" in spec.capture
        self._last_tokens = {name: int(rows.token_starts[row + 1]) - 1 for name, row in rows_by_name.items()}
        self._main_tokens = slice(int(rows.token_starts[main]), int(rows.token_starts[main + 1]))

    def observe(self, layer: int, heads: Tensor) -> None:
        """Fold the outputs of a layer into the state, and scale those of the main prompt in place.

        Args:
            layer: Number of the layer, from 0.
            heads: [tokens, own heads, head_dim] head outputs of all tokens of the step.
        """
        own = torch.stack([heads[token] for token in self._last_tokens.values()])
        captured = dict(zip(self._last_tokens, self._shards.gather(own, 1), strict=True))
        attention = {name: self._captured_attention[row] for name, row in self._rows_by_name.items()}
        self._activations = Activations(captured, layer, self.num_layers, self._vision_attention, attention)
        scales = None if self.captures_hidden_states else self.probe_fold.fold(self._activations)
        if scales is not None:
            heads[self._main_tokens] *= self._shards.select_own(scales, 0)[:, None].to(heads)

    def observe_layer(self, layer: int, hidden: Tensor) -> None:
        """Fold the activations of a layer into the state, with the hidden states after it.

        Args:
            layer: Number of the layer, from 0, whose heads have been observed.
            hidden: [tokens, width] hidden states of all tokens of the step.
        """
        states = {name: hidden[token].clone() for name, token in self._last_tokens.items()}
        self.probe_fold.fold(replace(self._activations, layer=layer, hidden_states=states))


def find_probes(rows: StepRows) -> Iterator[tuple[ProbeSpec, dict[str, int]]]:
    """Find the probes all of whose prompts run whole in this step. The scheduler ensures that.

    Args:
        rows: Rows of the step.

    Yields:
        A probe, and prompt name -> row.
    """
    gangs: dict[str, dict[str, int]] = defaultdict(dict)
    for row, member in rows.members.items():
        if member.is_single_step and rows.is_sampling[row] and rows.num_computed_tokens[row] == 0:
            gangs[member.gang][member.probe.main if member.probe else member.name] = row
    for rows_by_name in gangs.values():
        members = [rows.members[row] for row in rows_by_name.values()]
        spec = next((member.probe for member in members if member.probe), None)
        if spec is not None and len(rows_by_name) == members[0].size:
            yield spec, rows_by_name
