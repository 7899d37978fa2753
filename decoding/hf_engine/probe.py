"""Run probes: their prompts in one pass, whose activations are folded into strategy states layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from decoding.hf_engine.model.model import Model, PrefillOutput
from decoding.hf_engine.prefill import can_share_pass
from decoding.hf_engine.strategy_state import StoredStrategyState
from decoding.hf_engine.taps.attention import AttentionEdit
from decoding.hf_engine.taps.steering import SteeringEdit
from decoding.pipeline.composition import attribute_errors, copy_numbers
from decoding.pipeline.probe_fold import ProbeFold
from decoding.pipeline.steering import select_prompt_steering, select_steering_stack
from decoding.requests import ProbeRequest
from decoding.tensor_hooks import Activations, LayerPart, LayerPlace
from decoding.text.prompt_encoder import ModelInputs

Observer = Callable[[LayerPlace, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedProbe:
    """A probe with its prompts, encoded, by name."""

    request: ProbeRequest
    prompts: Mapping[str, ModelInputs]

    def can_join(self, others: Sequence[EncodedProbe]) -> bool:
        """Return whether the probe can share a pass with others: they capture the same, and the prompts fit."""
        if any(other.request.capture != self.request.capture for other in others):
            return False
        group = [prompt for other in others for prompt in other.prompts.values()]
        for prompt in self.prompts.values():
            if group and not can_share_pass(prompt, group):
                return False
            group.append(prompt)
        return True


@dataclass(frozen=True, slots=True, eq=False)
class RunningProbe:
    """A probe in a pass.

    Attributes:
        request: The probe.
        rows: Name of a prompt -> row of the pass.
        probe_fold: Its state and its failure.
        num_layers: Layers of the model.
    """

    request: ProbeRequest
    rows: Mapping[str, int]
    probe_fold: ProbeFold
    num_layers: int

    def build_result(self, outputs: Sequence[PrefillOutput]) -> StoredStrategyState | Exception:
        """Build the result of the probe from the outputs of the pass.

        Returns:
            The state, or the exception of a hook. If a request with the same prompt can continue from the pass, the
            state has the main prompt's prefill output.
        """
        if self.probe_fold.failure is not None:
            return self.probe_fold.failure
        strategy, main, state = self.request.strategy, self.request.main, self.probe_fold.state
        try:
            with attribute_errors(strategy):
                scales = strategy.head_scales(state)
            steers_prompt = bool(select_prompt_steering(select_steering_stack([strategy], {}), self.num_layers))
        except Exception as error:
            return error
        is_scaled_later = scales is not None and not self.request.layerwise
        if is_scaled_later or strategy.acts_on_attention() or steers_prompt:  # the KV states were computed without
            return StoredStrategyState(state)
        output = outputs[self.rows[main]]
        output = replace(output, key_values=output.clone_key_values())
        return StoredStrategyState(state, self.request.prompts[main], output, scales)


def run_probes(probes: Sequence[EncodedProbe], model: Model) -> list[StoredStrategyState | Exception]:
    """Run probes in one pass.

    Args:
        probes: The probes. `EncodedProbe.can_join` holds for each and those before it.
        model: The model.

    Returns:
        For each probe the strategy's state, or the exception of a hook.
    """
    prompts = [prompt for probe in probes for prompt in probe.prompts.values()]
    newest = [len(prompt) - 1 for prompt in prompts]
    numbers = iter(range(len(prompts)))
    running = [
        RunningProbe(
            probe.request,
            {name: next(numbers) for name in probe.prompts},
            ProbeFold(probe.request.strategy, probe.request.layerwise),
            model.num_layers,
        )
        for probe in probes
    ]
    capture = probes[0].request.capture
    attention: dict[int, Tensor] = {}  # row -> [heads, image tokens] in the layer that has just run
    heads: dict[int, Tensor] = {}  # row -> [heads, head_dim] in the layer that runs
    hidden: dict[int, Tensor] = {}  # row -> [width] after the layer that has just run
    updates: dict[int, Tensor] = {}  # row -> [length, width] that the attention of the layer adds
    observes_layers, observes_updates = "hidden_states" in capture, "attention_updates" in capture
    folds_late = probes[0].request.captures_late
    vision: dict[int, Tensor] = {}  # row -> [tower layers, images, heads, patches]

    def observe_heads(layer: int, outputs: Tensor) -> Tensor:  # [rows, length, heads, head_dim], as the result
        if vision_attention and not vision:
            vision.update(enumerate(split_by_prompt(vision_attention, prompts)))
        heads.update({row: outputs[row, last].to(model.device) for row, last in enumerate(newest)})
        factors = {} if folds_late else fold(layer)
        if not factors:
            return outputs
        outputs = outputs.clone()
        for row, scale in factors.items():
            outputs[row] *= scale[:, None].to(outputs.device)
        return outputs

    def fold(layer: int) -> dict[int, Tensor]:  # main row -> [heads]
        factors: dict[int, Tensor] = {}
        for probe in running:
            activations = Activations(
                {name: heads[row] for name, row in probe.rows.items()},
                layer,
                model.num_layers,
                {name: vision[row] for name, row in probe.rows.items()} if vision else {},
                {name: attention[row] for name, row in probe.rows.items()} if attention else {},
                hidden_states={name: hidden[row] for name, row in probe.rows.items()} if hidden else {},
                attention_updates={name: updates[row] for name, row in probe.rows.items()} if updates else {},
            )
            scales = probe.probe_fold.fold(activations)
            if scales is not None:
                factors[probe.rows[probe.request.main]] = scales
        return factors

    def build_observer(row: int) -> Observer:
        def observe(place: LayerPlace, outputs: Tensor, _: Tensor | None) -> Tensor:  # [tokens, width]
            own = outputs.clone().to(model.device)
            if place.part == "attention":
                updates[row] = own
            else:
                hidden[row] = own[0]
            if len(hidden if observes_layers else updates) == len(prompts):  # the layer's last capture
                fold(place.layer)
                hidden.clear()
                updates.clear()
            return outputs

        return observe

    image_positions = [(prompt.ids == model.image_token_id).nonzero().flatten().to(model.device) for prompt in prompts]

    def observe_attention(_: int, weights: Tensor) -> None:  # [rows, heads, keys]
        for row, positions in enumerate(image_positions):
            attention[row] = weights[row][:, positions.to(weights.device)].to(model.device)

    newest_positions = copy_numbers(newest, torch.long, model.device)
    edit = AttentionEdit(slice(None), newest_positions[:, None], observe_weights=observe_attention)
    edits = [edit] if "attention" in capture else []
    observed: dict[LayerPart, list[slice]] = {}  # part -> the tokens of each row
    if observes_updates:
        observed["attention"] = [slice(0, last + 1) for last in newest]
    if observes_layers:
        observed["layer"] = [slice(last, last + 1) for last in newest]
    observers = [
        SteeringEdit(slice(row, row + 1), own_tokens, list_places(part, model), build_observer(row))
        for part, tokens in observed.items()
        for row, own_tokens in enumerate(tokens)
    ]
    with (
        capture_vision_attention(capture, model) as vision_attention,
        model.attention_tap.edit(edits),
        model.steering_tap.edit(observers),
    ):
        outputs = model.prefill_observed(prompts, observe_heads)
    return [probe.build_result(outputs) for probe in running]


def list_places(part: LayerPart, model: Model) -> frozenset[LayerPlace]:
    """List the places of a part in all layers."""
    return frozenset(LayerPlace(part, layer, model.num_layers) for layer in range(model.num_layers))


def capture_vision_attention(capture: Set[str], model: Model) -> AbstractContextManager[list[Tensor]]:
    """Capture the vision tower's attention, if probes need it. The list fills while the tower runs."""
    if "vision_attention" not in capture:
        return nullcontext([])
    assert model.vision_attention_tap is not None, "the engine has checked its capabilities"
    return model.vision_attention_tap.capture()


def split_by_prompt(attention: Sequence[Tensor], prompts: Sequence[ModelInputs]) -> Sequence[Tensor]:
    """Split the tower's attention by prompt. The tower had the images of all prompts, in their order.

    Args:
        attention: For each layer of the tower [images, heads, patches].
        prompts: Prompts of the pass.

    Returns:
        [tower layers, images, heads, patches] of each prompt.
    """
    counts = [len(prompt.extras["pixel_values"]) if prompt.extras else 0 for prompt in prompts]
    return torch.split(torch.stack(list(attention)), counts, dim=1)
