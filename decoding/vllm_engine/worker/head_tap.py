"""Tap on the attention heads: the head scales of gangs, and probes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from decoding.errors import EngineFailed
from decoding.pipeline.composition import combine_head_scales, copy_numbers
from decoding.tensor_hooks import Tensors
from decoding.vllm_engine.member import Member, ProbeSpec, build_stack
from decoding.vllm_engine.worker import head_projection
from decoding.vllm_engine.worker.attention.attention_tap import GangAttentionTap
from decoding.vllm_engine.worker.forward_context import disable_compiled_code
from decoding.vllm_engine.worker.head_shards import HeadShards
from decoding.vllm_engine.worker.probe_capture import ProbeCapture, find_probes
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.steering_tap import GangSteeringTap
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure
from decoding.vllm_engine.worker.vision_attention_tap import CachedVisionAttentionTap


class GangHeadTap:
    """The head tap of one model runner, on its loaded and not yet compiled model.

    Args:
        model: Loaded model. The output projections of its layers are wrapped.
        states: Store of the strategy states.
        max_rows: Most rows in a step.
        max_tokens: Most tokens in a step.
        dtype: Type of the head outputs.
        device: Device of the model.
        captured_attention: Row -> [heads, image tokens] of the layer that has just run. None: the attention is not
            tapped.
        collect_vision_attention: Function of a request id. It returns [tower layers, images, heads, patches], or None
            without images. None: the vision tower is not tapped.
        steering_tap: Tap that observes the outputs of layers for probes. None: the layers are not tapped.
        shards: The heads that this process runs.
    """

    def __init__(
        self,
        model: nn.Module,
        states: StateStore,
        max_rows: int,
        max_tokens: int,
        dtype: torch.dtype,
        device: torch.device,
        captured_attention: Mapping[int, Tensor] | None,
        collect_vision_attention: Callable[[str], Tensor | None] | None,
        steering_tap: GangSteeringTap | None,
        shards: HeadShards,
    ) -> None:
        self.states = states
        self.shards = shards
        self.buffers = head_projection.install(model, max_rows, max_tokens, dtype, device, tap=self)
        self.captured_attention = captured_attention
        self.collect_vision_attention = collect_vision_attention
        self.steering_tap = steering_tap
        self._probes: list[ProbeCapture] = []
        self._is_scaling = False
        self._layout: tuple[object, ...] = ()
        self._token_rows: Tensor | None = None  # [tokens] of the step; None where no row is scaled

    @classmethod
    def from_runner(
        cls,
        runner: Any,
        states: StateStore,
        attention_tap: GangAttentionTap | None,
        vision_attention_tap: CachedVisionAttentionTap | None,
        steering_tap: GangSteeringTap | None,
        shards: HeadShards,
    ) -> GangHeadTap:
        """Tap the model of a model runner.

        Args:
            runner: vLLM's model runner.
            states: Store of the strategy states.
            attention_tap: Tap that captures attention for probes. None: the attention cannot be tapped.
            vision_attention_tap: Tap on the vision tower. None: the tower cannot be tapped.
            steering_tap: Tap on the layers. None: they cannot be tapped.
            shards: The heads that this process runs.

        Returns:
            The tap. `ValueError` gives the reason if the model cannot be tapped.
        """

        def collect_vision_attention(request_id: str) -> Tensor | None:
            assert vision_attention_tap is not None
            features = runner.requests[request_id].mm_features
            return vision_attention_tap.collect([feature.identifier for feature in features])

        return cls(
            runner.model,
            states,
            runner.vllm_config.scheduler_config.max_num_seqs,
            runner.max_num_tokens,
            runner.model_config.dtype,
            runner.device,
            None if attention_tap is None else attention_tap.captured_attention,
            None if vision_attention_tap is None else collect_vision_attention,
            steering_tap,
            shards,
        )

    @property
    def is_idle(self) -> bool:
        """Whether no head output is observed or scaled in this step."""
        return not (self._is_scaling or self._probes)

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Set the head scales of the step and start its probes.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        layout = (tuple(rows.request_ids), rows.token_starts.tobytes())
        if layout != self._layout:
            self._token_rows = self._set_scales(rows, token_info)
            self._layout = layout
        if self._token_rows is not None:
            self.buffers.token_rows[: len(self._token_rows)] = self._token_rows
            self._is_scaling = True
        self._probes = []
        for spec, rows_by_name in find_probes(rows):
            try:
                self._probes.append(self._build_capture(spec, rows_by_name, rows))
            except Exception as error:  # other requests of the step go on
                record_failure(token_info, rows.request_ids[rows_by_name[spec.main]], error, "probe_failed")
        if self._probes:
            disable_compiled_code()
            if self.steering_tap is not None:
                self.steering_tap.observers = [
                    probe.observe_layer for probe in self._probes if probe.captures_hidden_states
                ]

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Store the states of the probes, and reset the head scales, because a step without a gang calls no method.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        if self._is_scaling:
            self.buffers.token_rows.fill_(self.buffers.unscaled_row)
            self._is_scaling = False
        probes, self._probes = self._probes, []
        for probe in probes:
            try:
                if probe.probe_fold.failure is not None:
                    raise probe.probe_fold.failure
                self.states.put(probe.spec.handle, probe.probe_fold.state)
            except Exception as error:
                record_failure(token_info, probe.request_id, error, "probe_failed")

    def reset(self) -> None:
        """Drop the step, so that the next one sets its scales anew."""
        self.buffers.token_rows.fill_(self.buffers.unscaled_row)
        self._is_scaling, self._layout, self._token_rows, self._probes = False, (), None, []

    def edit(self, layer: int, heads: Tensor) -> Tensor:
        """Show the head outputs of a layer to the probes, which may scale those of their main prompts in place.

        Args:
            layer: Number of the layer, from 0.
            heads: [tokens, heads, head_dim], a copy.

        Returns:
            The same tensor.
        """
        for probe in self._probes:
            probe.observe(layer, heads)
        return heads

    def _build_capture(self, spec: ProbeSpec, rows_by_name: Mapping[str, int], rows: StepRows) -> ProbeCapture:
        """Build the capture of a probe.

        Args:
            spec: The probe.
            rows_by_name: Prompt name -> row of the step.
            rows: Rows of the step.

        Returns:
            The capture.

        Raises:
            EngineFailed: The attention, the vision tower or the layers are not tapped. The server refuses such probes
                at their admission.
        """
        captured_attention: Mapping[int, Tensor] = {}
        if "attention" in spec.capture:
            if self.captured_attention is None:
                raise EngineFailed("The attention is not tapped.")
            captured_attention = self.captured_attention
        if "hidden_states" in spec.capture and self.steering_tap is None:
            raise EngineFailed("The layers are not tapped.")
        vision_attention: Tensors = {}
        if "vision_attention" in spec.capture:
            if self.collect_vision_attention is None:
                raise EngineFailed("The vision tower is not tapped.")
            found = {name: self.collect_vision_attention(rows.request_ids[row]) for name, row in rows_by_name.items()}
            vision_attention = {name: weights for name, weights in found.items() if weights is not None}
        num_layers = self.buffers.scales.shape[0]
        return ProbeCapture(spec, rows_by_name, rows, num_layers, captured_attention, vision_attention, self.shards)

    def _set_scales(self, rows: StepRows, token_info: TokenInfo) -> Tensor | None:
        """Write the scales of each scaled row, and return the [tokens] rows of the step's tokens, or None."""
        scaled_rows = np.full(len(rows.request_ids), self.buffers.unscaled_row)
        for row, member in rows.members.items():
            try:
                scales = self._combine_scales(member)
                if scales is not None:
                    self.buffers.scales[:, row] = scales
                    scaled_rows[row] = row
            except Exception as error:  # other requests of the step go on
                record_failure(token_info, rows.request_ids[row], error, "head_scales_failed")
        if (scaled_rows == self.buffers.unscaled_row).all():
            return None
        token_rows = scaled_rows.repeat(np.diff(rows.token_starts))
        return copy_numbers(token_rows.tolist(), torch.long, self.buffers.token_rows.device)

    def _combine_scales(self, member: Member) -> Tensor | None:
        """Return the [layers, own heads] scales of a row, or None. Branches have no stack, so they have no scales."""
        states = self.states.get_all(member.states)
        layers, _, heads = self.buffers.scales.shape
        scales = combine_head_scales(build_stack(member.stack), states, (layers, heads * self.shards.size))
        return None if scales is None else self.shards.select_own(scales, 1)
