"""The runner of logits hooks, which both engines use: grouping, checks and the isolation of failures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from decoding.errors import StrategyFailed
from decoding.pipeline.logits_hooks import CHANGED, INVALID, UNCHANGED, HookResults, LogitsHookRunner, RequestHooks
from decoding.requests import MAIN
from decoding.strategy import Step, Strategy

VOCAB = 9


class Misbehaving(Strategy):
    """Adds `bonus` to token 0 and misbehaves where the position is `at`."""

    name: ClassVar[str] = "misbehaving"
    paper: ClassVar[str] = "none"
    how: str = "none"
    at: int = 1

    def logits(self, step: Step) -> Tensor:
        is_there = step.position == self.at
        match self.how:
            case "raises":
                if is_there.any():
                    raise ZeroDivisionError
            case "nan":
                return step.scores.masked_fill(is_there, math.nan)
            case "one nan":
                spoiled = step.scores.clone()
                spoiled[..., 3:4].masked_fill_(is_there, math.nan)
                return spoiled
            case "-inf":
                return step.scores.masked_fill(is_there, -math.inf)
            case "inf":
                return step.scores.masked_fill(is_there, math.inf)
            case "shape":
                return step.scores[..., 1:]
            case "dtype":
                return step.scores.double()
        return step.scores


class Flipping(Strategy):
    """Prefers the unlikeliest token."""

    name: ClassVar[str] = "flipping"
    paper: ClassVar[str] = "none"

    def logits(self, step: Step) -> Tensor:
        return -step.scores


class Lazy(Strategy):
    """Adds its branch in steps in which the first logit is positive."""

    name: ClassVar[str] = "lazy"
    paper: ClassVar[str] = "none"

    def needs_branches(self, raw: Tensor) -> Tensor:
        return raw[..., 0] > 0

    def logits(self, step: Step) -> Tensor:
        return step.scores + sum(step.branches.values())


class WrongNeeds(Lazy):
    name: ClassVar[str] = "wrong-needs"

    def needs_branches(self, raw: Tensor) -> Tensor:
        return raw > 0


def hooks(*stack: Strategy, branches: Sequence[str] = ()) -> RequestHooks:
    return RequestHooks.from_stack(stack, branches, {})


def run(
    requests: Sequence[RequestHooks], raw: Tensor, rows: Sequence[Mapping[str, int]] | None = None, more: int = 0
) -> HookResults:
    """Run one step in which the positions of the requests count from 0."""
    extra = torch.arange(more * VOCAB, dtype=torch.float32).view(more, VOCAB)
    position = torch.arange(len(raw))[:, None]
    rows = rows or [{MAIN: number} for number in range(len(raw))]
    return LogitsHookRunner().run(requests, rows, raw, torch.cat([raw, extra]), position)


def logits(count: int) -> Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(0))


def test_requests_without_a_logits_hook_keep_their_logits() -> None:
    raw = logits(2)
    results = run([hooks(), hooks()], raw)
    assert results.scores is raw
    assert results.status.tolist() == [UNCHANGED] * 2
    assert not results.failures


def test_status_marks_where_the_likeliest_token_changes() -> None:
    raw = logits(3)
    results = run([hooks(Flipping()), hooks(), hooks(Misbehaving())], raw)
    assert results.status.tolist() == [CHANGED, UNCHANGED, UNCHANGED]
    assert torch.equal(results.scores, torch.stack([-raw[0], raw[1], raw[2]]))
    assert all(results.get_failure(number, status) is None for number, status in enumerate(results.status.tolist()))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("nan", "Strategy 'misbehaving' returned nan logits."),
        ("one nan", "Strategy 'misbehaving' returned nan logits."),
        ("-inf", "Strategy 'misbehaving' left no token: all logits are -inf."),
        ("inf", "Strategy 'misbehaving' returned infinite logits."),
        ("raises", "Strategy 'misbehaving' failed: ZeroDivisionError."),
    ],
)
@pytest.mark.parametrize("outer", [(), (Flipping(),)], ids=["alone", "stacked"])
def test_a_failing_request_is_isolated_and_its_strategy_named(
    how: str, message: str, outer: tuple[Strategy, ...]
) -> None:
    raw = logits(3)
    results = run([hooks(*outer, Misbehaving(how=how)) for _ in range(3)], raw)
    failures = [results.get_failure(number, status) for number, status in enumerate(results.status.tolist())]
    assert [failure is None for failure in failures] == [True, False, True]
    assert isinstance(failures[1], StrategyFailed)
    assert failures[1].message == message
    assert results.scores.isfinite().all()
    for number in (0, 2):
        assert torch.equal(results.scores[number], -raw[number] if outer else raw[number])


@pytest.mark.parametrize("how", ["shape", "dtype"])
def test_another_shape_or_dtype_fails_the_requests_that_use_the_strategy(how: str) -> None:
    raw = logits(3)
    results = run([hooks(Flipping()), hooks(Misbehaving(how=how)), hooks()], raw)
    assert list(results.failures) == [1]
    assert isinstance(results.failures[1], StrategyFailed)
    assert "'misbehaving'" in results.failures[1].message
    assert torch.equal(results.scores, torch.stack([-raw[0], raw[1], raw[2]]))


def test_invalid_logits_of_the_model_do_not_fail_a_strategy() -> None:
    raw = logits(2)
    raw[1] = math.nan
    results = run([hooks(Flipping())] * 2, raw)
    assert results.status.tolist() == [CHANGED, INVALID]
    failure = results.get_failure(1, INVALID)
    assert not isinstance(failure, StrategyFailed)
    assert str(failure) == "The model returned nan logits."


def test_lazy_branches_are_needed_where_their_strategy_needs_them() -> None:
    raw = logits(3).abs()
    raw[1] = -raw[1]
    requests = [hooks(Lazy(), branches=["lazy/one"]) for _ in range(3)]
    needed, failures = LogitsHookRunner().find_needed_branches(requests, raw)
    assert needed == {0: ["lazy/one"], 2: ["lazy/one"]}
    assert not failures
    rows = [{MAIN: 0, "lazy/one": 3}, {MAIN: 1}, {MAIN: 2, "lazy/one": 4}]
    results = run(requests, raw, rows, more=2)
    extra = torch.arange(2 * VOCAB, dtype=torch.float32).view(2, VOCAB)
    assert torch.equal(results.scores, raw + torch.stack([extra[0], torch.zeros(VOCAB), extra[1]]))


def test_a_failing_needs_branches_hook_names_its_strategy() -> None:
    requests = [hooks(Lazy(), branches=["lazy/one"]), hooks(WrongNeeds(), branches=["wrong-needs/one"])]
    needed, failures = LogitsHookRunner().find_needed_branches(requests, logits(2).abs())
    assert needed == {0: ["lazy/one"]}
    assert str(failures[1]) == "Strategy 'wrong-needs' failed: TypeError."


def test_a_step_with_other_rows_is_grouped_again() -> None:
    runner, raw = LogitsHookRunner(), logits(4)
    requests = [hooks(Lazy(), branches=["lazy/one"]), hooks(Lazy(), branches=["lazy/one"])]
    position = torch.zeros(2, 1, dtype=torch.long)
    for first, second in ((2, 3), (3, 2)):
        rows = [{MAIN: 0, "lazy/one": first}, {MAIN: 1, "lazy/one": second}]
        results = runner.run(requests, rows, raw[:2], raw, position)
        assert torch.equal(results.scores, raw[:2] + raw[[first, second]])
