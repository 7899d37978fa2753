"""Tests of the `edit_attention_scores` hooks of rows that share calls."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from decoding.errors import StrategyFailed
from decoding.pipeline.attention_hooks import (
    StatefulStack,
    batch_attention_stacks,
    compute_attention_batch_key,
    edit_attention,
    find_question_start,
    select_attention_stack,
    select_question_stack,
)
from decoding.strategies.attention.vaf import VAF
from decoding.strategy import AttentionKeys, Step, Strategy, Tensors

ROWS, HEADS, KEYS = 3, 2, 4
INDEX = torch.tensor([[0, 1, -1, -1], [-1, 0, 1, -1], [-1, -1, 0, 1]])


class FailsAtImageKeys(Strategy):
    """Adds its state to the scores of image tokens. Fails where the first key is an image token."""

    name: ClassVar[str] = "raises"
    paper: ClassVar[str] = "none"
    shape: bool = False

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if keys.is_image[:, 0].any():
            if self.shape:
                return scores[..., 1:]
            raise ZeroDivisionError
        return scores + state["bonus"][:, None, None] * keys.is_image[:, None]


class Sharpens(Strategy):
    """Edits no attention."""

    name: ClassVar[str] = "sharpens"
    paper: ClassVar[str] = "none"

    def logits(self, step: Step) -> Tensor:
        return step.scores * 2


class Doubles(Strategy):
    name: ClassVar[str] = "doubles"
    paper: ClassVar[str] = "none"

    def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        return scores * 2


class Gates(Strategy):
    """Scales each head by the sum of its scores. Fails where a score is negative."""

    name: ClassVar[str] = "gates"
    paper: ClassVar[str] = "none"
    shape: bool = False

    def gate_heads(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
        if (scores < 0).any():
            if self.shape:
                return scores
            raise ZeroDivisionError
        return scores.sum(-1)


def test_gates_multiply_and_read_the_scores_of_inner_strategies() -> None:
    scores = torch.rand(ROWS, HEADS, KEYS)
    stack: StatefulStack = [(Gates(), {}), (Doubles(), {}), (Gates(), {})]
    edited, gates, failures = edit_attention(stack, AttentionKeys(INDEX, 0, 1), scores)
    assert not failures
    assert torch.equal(edited, scores * 2)
    assert gates is not None
    torch.testing.assert_close(gates, 2 * scores.sum(-1) ** 2)


@pytest.mark.parametrize("shape", [False, True])
def test_failing_row_is_not_gated_and_the_others_are(shape: bool) -> None:
    scores = torch.rand(ROWS, HEADS, KEYS)
    scores[1] *= -1
    edited, gates, failures = edit_attention([(Gates(shape=shape), {})], AttentionKeys(INDEX, 0, 1), scores)
    assert list(failures) == [1]
    assert str(failures[1]).startswith("Strategy 'gates' " + ("returned" if shape else "failed: ZeroDivisionError"))
    assert torch.equal(edited, scores)
    assert gates is not None
    assert torch.equal(gates[1], torch.ones(HEADS))
    assert torch.equal(gates[::2], scores[::2].sum(-1))


@pytest.mark.parametrize("shape", [False, True])
def test_failing_row_keeps_its_scores_and_the_others_are_edited(shape: bool) -> None:
    scores, bonus = torch.randn(ROWS, HEADS, KEYS), torch.arange(1.0, ROWS + 1)
    stack: StatefulStack = [(Doubles(), {}), (FailsAtImageKeys(shape=shape), {"bonus": bonus})]
    edited, gates, failures = edit_attention(stack, AttentionKeys(INDEX, 0, 1), scores)
    assert gates is None
    assert list(failures) == [0]
    assert isinstance(failures[0], StrategyFailed)
    assert failures[0].message.startswith("Strategy 'raises' " + ("returned" if shape else "failed: ZeroDivisionError"))
    assert torch.equal(edited[0], scores[0])
    expected = scores * 2 + bonus[:, None, None] * (INDEX >= 0)[:, None]
    assert torch.equal(edited[1:], expected[1:])


def test_result_that_is_no_tensor_names_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Doubles, "edit_attention_scores", lambda *_: None)
    scores = torch.randn(1, HEADS, KEYS)
    edited, _, failures = edit_attention([(Doubles(), {})], AttentionKeys(INDEX[:1], 0, 1), scores)
    assert torch.equal(edited, scores)
    assert "returned NoneType from `edit_attention_scores` instead of a tensor" in str(failures[0])


def test_requests_with_the_same_edits_share_calls() -> None:
    """The strategies that edit no attention do not matter. The shapes of the states do."""
    fails = FailsAtImageKeys()
    stacks = [
        select_attention_stack(stack, {"raises": {"bonus": torch.full(shape, bonus)}, "sharpens": {"other": other}})
        for stack, shape, bonus, other in (
            ((fails, Doubles()), (), 1.0, torch.zeros(1)),
            ((fails, Sharpens(), Doubles()), (), 2.0, torch.zeros(2)),
            ((fails, Doubles()), (1,), 3.0, torch.zeros(1)),
            ((Doubles(), fails), (), 4.0, torch.zeros(1)),
            ((FailsAtImageKeys(shape=True), Doubles()), (), 5.0, torch.zeros(1)),
        )
    ]
    assert [strategy.name for strategy, _ in stacks[1]] == ["doubles", "raises"]
    first, *others = map(compute_attention_batch_key, stacks)
    assert [key == first for key in others] == [True, False, False, False]
    batched = batch_attention_stacks(stacks[:2])
    assert [strategy for strategy, _ in batched] == [Doubles(), fails]
    assert batched[1][1]["bonus"].tolist() == [1.0, 2.0]


def test_failing_row_keeps_the_marks_of_the_answer() -> None:
    class MarksAnswer(FailsAtImageKeys):
        def edit_attention_scores(self, scores: Tensor, keys: AttentionKeys, state: Tensors) -> Tensor:
            return super().edit_attention_scores(scores, keys, state) + keys.is_generated[:, None]

    scores, generated = torch.zeros(ROWS, HEADS, KEYS), INDEX == 1
    stack: StatefulStack = [(MarksAnswer(), {"bonus": torch.zeros(ROWS)})]
    edited, _, failures = edit_attention(stack, AttentionKeys(INDEX, 0, 1, generated), scores)
    assert list(failures) == [0]
    assert torch.equal(edited[1:, 0], generated[1:].float())
    assert not AttentionKeys(INDEX, 0, 1).is_generated.any()


def test_question_begins_after_the_last_image() -> None:
    indices = [-1, 0, 1, -1, 2, -1, -1], [0], [-1, -1]
    assert [find_question_start(torch.tensor(index) >= 0) for index in indices] == [5, 1, 2]
    stack: StatefulStack = [(Doubles(), {}), (VAF(), {})]
    assert [strategy.name for strategy, _ in select_question_stack(stack)] == ["vaf"]
