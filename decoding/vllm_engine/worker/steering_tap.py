"""Tap on the parts of the decoder's layers: strategies edit what leaves them, token by token.

An operator of its own calls the hooks. Compiled code has the operator and not its work, so that any edit runs there.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from decoding.pipeline.attention_hooks import StatefulStack, batch_attention_stacks, compute_attention_batch_key
from decoding.pipeline.composition import copy_numbers
from decoding.pipeline.steering import (
    expand_steering_stack,
    find_steered_places,
    select_prompt_steering,
    select_steering_stack,
    steer_outputs,
)
from decoding.tensor_hooks import LayerPart, LayerPlace
from decoding.vllm_engine.member import Member, build_stack
from decoding.vllm_engine.worker.forward_context import disable_cuda_graphs
from decoding.vllm_engine.worker.state_store import StateStore
from decoding.vllm_engine.worker.step_rows import StepRows, TokenInfo, record_failure

PARTS: dict[LayerPart, str] = {"attention": "self_attn", "feed_forward": "mlp"}  # part -> attribute of a layer
taps: WeakValueDictionary[int, GangSteeringTap] = WeakValueDictionary()  # number, from 0 in each process -> tap
tap_numbers = itertools.count()


def call_tap(outputs: Tensor, residual: Tensor | None, tap: int, part: LayerPart, layer: int) -> None:
    """Edit the outputs of a part of a layer in place.

    Args:
        outputs: [tokens, width].
        residual: [tokens, width] that is added to the outputs of a whole layer, or None.
        tap: Number of the tap.
        part: The part.
        layer: Number of the layer, from 0.
    """
    taps[tap].edit(LayerPlace(part, layer, taps[tap].num_layers), outputs, residual)


library: Any = torch.library.Library("onlyseen", "FRAGMENT")  # type: ignore[no-untyped-call]
library.define("steer(Tensor(a!) outputs, Tensor(b!)? residual, int tap, str part, int layer) -> ()")
library.impl("steer", call_tap, "CompositeExplicitAutograd")
torch.library.register_fake("onlyseen::steer", lambda *_: None, lib=library)


class SteeredModule(nn.Module):
    """A layer, or the module of one of its parts, whose outputs go through the tap."""

    def __init__(self, module: nn.Module, part: LayerPart, layer: int, tap: GangSteeringTap) -> None:
        super().__init__()
        self.module = module
        self.part = part
        self.number = layer
        self.tap = tap
        self.tap_number = tap.number

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module, and edit its outputs.

        Args:
            args: Arguments of the module.
            kwargs: Further arguments.

        Returns:
            Whatever the module returns.
        """
        result = self.module(*args, **kwargs)
        outputs, residual = result if isinstance(result, tuple) else (result, None)
        # Compiled code cannot branch on Python state later, so that it always calls the operator.
        if torch.compiler.is_compiling():
            torch.ops.onlyseen.steer(outputs, residual, self.tap_number, self.part, self.number)
        elif not self.tap.is_idle:
            call_tap(outputs, residual, self.tap_number, self.part, self.number)
        return result


@dataclass(frozen=True, slots=True, eq=False)
class SteeredRequest:
    """A request that is steered."""

    request_id: str
    batch_key: object  # requests with equal keys share hook calls
    stack: StatefulStack  # with states of *shape
    prompt_stack: StatefulStack  # strategies that also steer the tokens of the prompt
    places: frozenset[LayerPlace]


@dataclass(frozen=True, slots=True, eq=False)
class SteeredTokens:
    """Tokens of a step that one call edits: one token of each request, or several of one."""

    requests: Sequence[SteeredRequest]  # of the tokens
    tokens: Tensor | slice  # [n] numbers among the tokens of the step
    stack: StatefulStack  # with states of [n, *shape]


class GangSteeringTap:
    """The steering of one model runner, on its loaded and not yet compiled model.

    Args:
        layers: The modules that have a layer as `layer`. The layers and their parts are wrapped.
        states: Store of the strategy states.
        device: Device of the model.
    """

    def __init__(self, layers: Sequence[Any], states: StateStore, device: torch.device) -> None:
        self.num_layers = len(layers)
        self.states = states
        self.device = device
        self.number = next(tap_numbers)
        taps[self.number] = self
        self._requests: dict[str, SteeredRequest] = {}
        self._layout: tuple[object, ...] = ()
        self._steered: list[SteeredTokens] = []
        self._is_steering = False
        self._failures: dict[str, Exception] = {}
        # Functions of a layer and its [tokens, width] outputs, for one step that runs uncompiled.
        self.observers: Sequence[Callable[[int, Tensor], None]] = ()
        for number, holder in enumerate(layers):
            for part, name in PARTS.items():
                setattr(holder.layer, name, SteeredModule(getattr(holder.layer, name), part, number, self))
            holder.layer = SteeredModule(holder.layer, "layer", number, self)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is steered or observed in this step."""
        return not (self._is_steering or self.observers)

    def before_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """Find the tokens of the step that are steered.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._failures = {}
        self._requests = {key: self._requests[key] for key in rows.request_ids if key in self._requests}
        found: list[tuple[SteeredRequest, int, int, int]] = []  # request, its tokens, and those before the answer
        for row, member in rows.members.items():
            if not steers(member):
                continue
            try:
                request = self._get_request(rows.request_ids[row], member)
            except Exception as error:  # other requests of the step go on
                record_failure(token_info, rows.request_ids[row], error, "steering_not_built")
                continue
            start, end = int(rows.token_starts[row]), int(rows.token_starts[row + 1])
            prompt_length = int(rows.num_tokens[row] - rows.num_generated_tokens[row]) - member.answer_prefix_length
            before = min(max(prompt_length - int(rows.num_computed_tokens[row]), 0), end - start)
            found.append((request, start, end, before))
        layout = tuple((request.request_id, *numbers) for request, *numbers in found)
        if layout != self._layout:
            self._layout, self._steered = layout, self._build_steered_tokens(found)
        self._is_steering = bool(self._steered)
        if self._is_steering and self.device.type == "cuda":
            disable_cuda_graphs()

    def edit(self, place: LayerPlace, outputs: Tensor, residual: Tensor | None) -> None:
        """Edit the outputs of a place in place. A hook that fails, fails its own request.

        Args:
            place: The part of the layer.
            outputs: [tokens, width], with tokens of padding after those of the step.
            residual: [tokens, width] that is added to the outputs, or None.
        """
        if self.observers and place.part == "layer":
            hidden = outputs if residual is None else outputs + residual
            for observe in self.observers:
                observe(place.layer, hidden)
        for steered in self._steered if self._is_steering else ():
            if place not in steered.requests[0].places:
                continue
            own = outputs[steered.tokens]
            whole = own if residual is None else own + residual[steered.tokens]
            edited, failures = steer_outputs(steered.stack, place, whole)
            self._failures |= {steered.requests[number].request_id: error for number, error in failures.items()}
            outputs[steered.tokens] = edited
            if residual is not None:
                residual[steered.tokens] = 0

    def after_forward(self, rows: StepRows, token_info: TokenInfo) -> None:
        """End the step, and report hooks that failed.

        Args:
            rows: Rows of the step.
            token_info: Receives failures.
        """
        self._is_steering, self.observers = False, ()
        failures, self._failures = self._failures, {}
        for request_id, error in failures.items():
            record_failure(token_info, request_id, error, "steer_failed")

    def reset(self) -> None:
        """Drop the step."""
        self._requests, self._layout, self._steered, self._failures = {}, (), [], {}
        self._is_steering, self.observers = False, ()

    def _get_request(self, request_id: str, member: Member) -> SteeredRequest:
        request = self._requests.get(request_id)
        if request is None:
            stack = select_steering_stack(build_stack(member.stack), self.states.get_all(member.states))
            request = self._requests[request_id] = SteeredRequest(
                request_id,
                compute_attention_batch_key(stack),
                stack,
                select_prompt_steering(stack, self.num_layers),
                find_steered_places(stack, self.num_layers),
            )
        return request

    def _build_steered_tokens(self, found: Sequence[tuple[SteeredRequest, int, int, int]]) -> list[SteeredTokens]:
        """Build the edits of a step, from requests with their first token, the one after the last, and the split."""
        steered: list[SteeredTokens] = []
        single: dict[tuple[bool, object], list[tuple[SteeredRequest, int]]] = defaultdict(list)
        for request, start, end, before in found:
            for is_prompt, first, last in ((True, start, start + before), (False, start + before, end)):
                stack = request.prompt_stack if is_prompt else request.stack
                count = last - first
                if not stack or not count:
                    continue
                if count == 1:
                    single[is_prompt, request.batch_key].append((request, first))
                else:
                    expanded = expand_steering_stack(stack, count)
                    steered.append(SteeredTokens([request] * count, slice(first, last), expanded))
        for (is_prompt, _), tokens in single.items():
            requests = [request for request, _ in tokens]
            stacks = [request.prompt_stack if is_prompt else request.stack for request in requests]
            index = copy_numbers([number for _, number in tokens], torch.long, self.device)
            steered.append(SteeredTokens(requests, index, batch_attention_stacks(stacks)))
        return steered


def steers(member: Member) -> bool:
    """Return whether a strategy of the member steers. Branches have no stack."""
    return any("steer" in spec.list_hooks() for spec in member.stack)
