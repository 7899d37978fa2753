"""Call the `needs_branches` and `logits` hooks of a batch, once per group of requests that can share the call.

Both engines use this runner. An engine maps prompts to rows of its logits. The runner groups requests that share a hook
call, maps failures to requests, and checks that the scores can be sampled from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from types import MappingProxyType

import torch
from torch import Tensor

from decoding.errors import EngineFailed
from decoding.pipeline.composition import (
    apply_logits_hooks,
    attribute_errors,
    batch_stacks,
    copy_numbers,
    find_invalid_strategy,
    find_invalid_values,
    select_branch_names,
)
from decoding.tensor_hooks import TensorHooks, Tensors

Failures = dict[int, Exception]  # number of a request -> what one of its hooks raised

# Status of a request after its hooks.
UNCHANGED = 0
CHANGED = 1  # the likeliest token is another one than before the hooks
INVALID = 2  # the scores cannot be sampled from


@dataclass(frozen=True, slots=True, eq=False)
class RequestHooks:
    """The strategies of one request and the inputs of their tensor hooks. Instances compare by identity."""

    stack: tuple[TensorHooks, ...]  # outermost first
    states: Mapping[str, Tensors]  # strategy -> its state
    batch_key: object  # requests with equal keys share hook calls
    branches: frozenset[str]  # branches that the `logits` hooks receive
    lazy_branches: frozenset[str]  # branches that run only at steps that need them

    @classmethod
    def from_stack(
        cls, stack: Sequence[TensorHooks], branches: Iterable[str], states: Mapping[str, Tensors]
    ) -> RequestHooks:
        """Derive the batch key and the branches.

        Args:
            stack: Strategies, outermost first.
            branches: Names of all branches of the request, "strategy/name".
            states: Strategy name -> its state.

        Returns:
            The hooks of the request.
        """
        branches = sorted(branches)
        keys = tuple(strategy.batch_key() for strategy in stack)
        shapes = tuple(
            (strategy, name, tensor.shape) for strategy in sorted(states) for name, tensor in states[strategy].items()
        )
        used = frozenset(
            name for each in stack if "logits" in each.list_hooks() for name in select_branch_names(each, branches)
        )
        lazy = frozenset(
            name for each in stack if each.has_lazy_branches() for name in select_branch_names(each, branches)
        )
        return cls(tuple(stack), states, (keys, tuple(branches), shapes), used, lazy)

    @property
    def has_logits_hook(self) -> bool:
        return any("logits" in strategy.list_hooks() for strategy in self.stack)


@dataclass(frozen=True, slots=True)
class HookInputs:
    """Arguments of `apply_logits_hooks` after the stack."""

    raw: Tensor  # [n, vocab]
    branches: Mapping[str, Tensor]  # name -> [n, vocab]
    states: Mapping[str, Tensors]  # strategy -> name -> [n, *shape]
    position: Tensor  # [n, 1] tokens generated so far
    early_logits: Mapping[str, Tensor]  # strategy -> [n, exits, vocab]

    def select_row(self, number: int) -> HookInputs:
        """Select one request, and keep the batch dimension."""
        one = slice(number, number + 1)
        states = {
            strategy: {name: tensor[one] for name, tensor in own.items()} for strategy, own in self.states.items()
        }
        branches, early_logits = (
            {name: logits[one] for name, logits in by_name.items()} for by_name in (self.branches, self.early_logits)
        )
        return HookInputs(self.raw[one], branches, states, self.position[one], early_logits)

    def apply(self, stack: Sequence[TensorHooks]) -> Tensor:
        """Return the [n, vocab] scores after the `logits` hooks of the stack."""
        return apply_logits_hooks(stack, self.raw, self.branches, self.states, self.position, self.early_logits)

    def find_failure(self, stack: Sequence[TensorHooks]) -> Exception:
        """Find out why the scores are invalid. The hooks run again, strategy by strategy."""
        if (problem := find_invalid_values(self.raw)) is not None:
            return EngineFailed(f"The model {problem}.")
        try:
            found = find_invalid_strategy(stack, self.raw, self.branches, self.states, self.position, self.early_logits)
        except Exception as error:
            return error
        return found or EngineFailed("The strategies returned invalid logits.")


@dataclass(frozen=True, slots=True)
class HookBatch:
    """Requests of one step that share their hook calls."""

    numbers: Sequence[int]  # of the requests in the step
    requests: tuple[RequestHooks, ...]
    index: Tensor | None  # [n] the numbers on the device; None if the batch is the whole step
    branches: Mapping[str, Tensor]  # name -> [n] rows of the step's logits
    stack: tuple[TensorHooks, ...]  # one stack for all requests
    states: Mapping[str, Tensors]  # strategy -> name -> [n, *shape]

    def gather_inputs(
        self, raw: Tensor, logits: Tensor, position: Tensor, early_logits: Sequence[Mapping[str, Tensor]] | None
    ) -> HookInputs:
        """Gather the inputs of the hooks from those of the step.

        Args:
            raw: Logits of the main rows of the step, [requests, vocab].
            logits: Logits of all rows of the step, [rows, vocab].
            position: Number of tokens that each answer has, [requests, 1].
            early_logits: For each request, strategy -> [exits, vocab].

        Returns:
            The inputs of the n requests of this batch: raw [n, vocab], branches [n, vocab] each, position [n, 1].
        """
        early = [early_logits[number] for number in self.numbers] if early_logits is not None else [{}]
        return HookInputs(
            raw if self.index is None else raw[self.index],
            {name: logits[rows] for name, rows in self.branches.items()},
            self.states,
            position if self.index is None else position[self.index],
            {strategy: torch.stack([own[strategy] for own in early]) for strategy in early[0]},
        )


class HookResults:
    """Scores of one step after the `logits` hooks.

    An engine reads `status` on the host together with the sampled tokens, so that checking the scores costs no
    synchronisation of its own.

    Attributes:
        scores: [requests, vocab]. Where a hook failed, the logits of the model, which can be sampled from.
        status: [requests] UNCHANGED, CHANGED or INVALID.
    """

    def __init__(self, raw: Tensor) -> None:
        self.scores = raw
        self.status = torch.zeros(len(raw), dtype=torch.long, device=raw.device)
        self.failures: Failures = {}
        self._raw = raw
        self._done: list[tuple[HookBatch, HookInputs]] = []

    def add(self, batch: HookBatch, inputs: HookInputs, scores: Tensor) -> None:
        """Take the [n, vocab] scores of a batch. Invalid ones are replaced: a sampler would fail on them."""
        best, likeliest = scores.max(dim=-1)  # nan counts as the largest value
        is_valid = best.isfinite()
        scores = torch.where(is_valid[:, None], scores, inputs.raw)
        status = torch.where(is_valid, (likeliest != inputs.raw.argmax(dim=-1)).long(), INVALID)
        if batch.index is None:
            self.scores, self.status = scores, status
        else:
            self.scores = self._raw.clone() if self.scores is self._raw else self.scores
            self.scores[batch.index], self.status[batch.index] = scores, status
        self._done.append((batch, inputs))

    def get_failure(self, number: int, status: int) -> Exception | None:
        """Return why the hooks of a request failed, or None.

        Args:
            number: Number of the request in the step.
            status: The request's value of `status`.
        """
        if number in self.failures or status != INVALID:
            return self.failures.get(number)
        batch, inputs = next(done for done in self._done if number in done[0].numbers)
        row = list(batch.numbers).index(number)
        return inputs.select_row(row).find_failure(batch.requests[row].stack)


class LogitsHookRunner:
    """Runs the hooks of the running batch, step by step.

    The grouping and the index tensors are kept for as long as the same requests have the same rows.
    """

    def __init__(self) -> None:
        self._requests: list[RequestHooks] = []
        self._rows: list[Mapping[str, int]] = []
        self._batches: list[HookBatch] = []

    def find_needed_branches(
        self, requests: Sequence[RequestHooks], raw: Tensor
    ) -> tuple[dict[int, list[str]], Failures]:
        """Find the lazy branches that a step needs.

        Args:
            requests: Requests of the step.
            raw: [requests, vocab] logits of their main rows.

        Returns:
            Number of a request -> names of the lazy branches that it needs, and number -> exception of a hook.
        """
        needed: dict[int, list[str]] = {}
        groups: dict[object, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if request.lazy_branches:
                groups[request.batch_key].append(number)

        def call(numbers: Sequence[int]) -> None:
            own = raw if len(numbers) == len(requests) else raw[list(numbers)]
            found: dict[int, list[str]] = defaultdict(list)
            for strategy in batch_stacks([requests[number].stack for number in numbers], raw.device):
                if names := select_branch_names(strategy, sorted(requests[numbers[0]].lazy_branches)):
                    for number in compress(numbers, call_needs_branches(strategy, own)):
                        found[number] += names
            needed.update(found)

        failures: Failures = {}
        for numbers in groups.values():
            failures |= isolate_failures(numbers, call)
        return needed, failures

    def run(
        self,
        requests: Sequence[RequestHooks],
        rows: Sequence[Mapping[str, int]],
        raw: Tensor,
        logits: Tensor,
        position: Tensor,
        early_logits: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> HookResults:
        """Run the `logits` hooks of a step. A hook that fails, fails its own request.

        Args:
            requests: Requests of the step.
            rows: For each request, name of a prompt -> row of `logits`. Lazy branches that the step does not need are
                absent.
            raw: [requests, vocab] logits of the main rows, with forbidden tokens at -inf.
            logits: [rows, vocab] logits of all rows.
            position: [requests, 1] tokens generated so far.
            early_logits: For each request, strategy -> [exits, vocab] after the layers of its `early_exit_layers`.

        Returns:
            The scores of all requests. Those without a `logits` hook keep `raw`.
        """
        requests, rows = list(requests), list(rows)
        if requests != self._requests or rows != self._rows:
            self._plan(requests, rows, raw.device)
        results = HookResults(raw)
        for batch in self._batches:

            def call(numbers: Sequence[int], planned: HookBatch = batch) -> None:
                whole = numbers is planned.numbers
                own = planned if whole else build_batch(numbers, requests, rows, raw.device)
                inputs = own.gather_inputs(raw, logits, position, early_logits)
                results.add(own, inputs, inputs.apply(own.stack))

            results.failures |= isolate_failures(batch.numbers, call)
        return results

    def _plan(self, requests: list[RequestHooks], rows: list[Mapping[str, int]], device: torch.device) -> None:
        """Group the requests of a step. Requests with lazy branches share calls only if they have the same rows."""
        groups: dict[object, list[int]] = defaultdict(list)
        for number, request in enumerate(requests):
            if request.has_logits_hook:
                groups[request.batch_key, frozenset(rows[number]) if request.lazy_branches else None].append(number)
        known = {batch.requests: batch for batch in self._batches}
        self._batches = [build_batch(numbers, requests, rows, device, known) for numbers in groups.values()]
        self._requests, self._rows = requests, rows


def build_batch(
    numbers: Sequence[int],
    requests: Sequence[RequestHooks],
    rows: Sequence[Mapping[str, int]],
    device: torch.device,
    known: Mapping[tuple[RequestHooks, ...], HookBatch] = MappingProxyType({}),
) -> HookBatch:
    """Merge requests with equal batch keys. Take stack and states from a known batch of the same requests.

    Args:
        numbers: Numbers of the requests in the step.
        requests: Requests of the step.
        rows: For each request of the step, name of a prompt -> row of the step's logits.
        device: Device of the logits.
        known: Batches of the last step, by their requests.

    Returns:
        The batch.
    """
    members = tuple(requests[number] for number in numbers)
    earlier = known.get(members)
    if earlier is not None:
        stack, states = earlier.stack, earlier.states
    else:
        stack = batch_stacks([request.stack for request in members], device)
        states = {
            strategy: stack_states([request.states[strategy] for request in members]) for strategy in members[0].states
        }
    return HookBatch(
        numbers,
        members,
        None if len(numbers) == len(requests) else to_index(numbers, device),
        {
            name: to_index([rows[number][name] for number in numbers], device)
            for name in sorted(members[0].branches)
            if name in rows[numbers[0]]
        },
        stack,
        states,
    )


def stack_states(states: Sequence[Tensors]) -> dict[str, Tensor]:
    """Stack one strategy's states of several requests: name -> [requests, *shape].

    Args:
        states: States with equal names and shapes.

    Returns:
        The state. A tensor that all requests share, as the vectors of a file, is repeated without a copy.
    """
    return {
        name: first.expand(len(states), *first.shape)
        if all(state[name] is first for state in states)
        else torch.stack([state[name] for state in states])
        for name, first in states[0].items()
    }


def to_index(numbers: Sequence[int], device: torch.device) -> Tensor:
    return copy_numbers(numbers, torch.long, device)


def call_needs_branches(strategy: TensorHooks, raw: Tensor) -> list[bool]:
    """Call one `needs_branches` hook.

    Args:
        strategy: Strategy with the hook.
        raw: [n, vocab] logits of the main rows.

    Returns:
        [n] whether each request needs the strategy's branches.

    Raises:
        TypeError: The hook returns another shape. It reaches the caller as `StrategyFailed`, as any exception does.
    """
    with attribute_errors(strategy):
        needed = strategy.needs_branches(raw)
        if needed.shape != raw.shape[:-1]:
            raise TypeError(f"`needs_branches` returned {list(needed.shape)} instead of {list(raw.shape[:-1])}")
        return needed.tolist()


def isolate_failures(numbers: Sequence[int], call: Callable[[Sequence[int]], None]) -> Failures:
    """Call a function for a group of requests. If it raises, call it for each request, to isolate those that fail.

    Args:
        numbers: Numbers of the requests.
        call: Function that either has its full effect or raises without one.

    Returns:
        Number of a request -> exception.
    """
    try:
        call(numbers)
    except Exception as error:
        if len(numbers) == 1:
            return {numbers[0]: error}
        failures: Failures = {}
        for number in numbers:
            failures |= isolate_failures([number], call)
        return failures
    return {}
