"""Edits of attention, on a toy cache with the layout of a GPU. No vLLM is needed.

The tests of parity, pressure, cache isolation, families and compiled models cover them, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import structlog
import torch
from torch import Tensor

from decoding.conformance.simulated_device import DEVICE, simulate_device
from decoding.requests import MAIN
from decoding.strategies.attention.adaiat import AdaIAT
from decoding.strategies.attention.pai import PAI
from decoding.tensor_hooks import AttentionKeys
from decoding.vllm_engine.member import Member
from tests.decoding.vllm_engine.worker.harness import (
    HEAD_DIM,
    HEADS,
    IMAGE,
    KV_HEADS,
    OTHER,
    PROMPT,
    ToyStep,
    build_specs,
    build_step,
    build_tap,
)

EDITED = Member("edited", MAIN, 1, stack=build_specs("pai", pai={"alpha": 2.0, "gamma": 1.0, "first_layer": 0}))


ANSWER = Member("answer", MAIN, 1, stack=build_specs("iat", iat={"alpha": 2.0, "first": 0.0}))
QUESTION = Member("question", MAIN, 1, stack=build_specs("vaf", vaf={"enhance": 2.0, "suppress": 0.5, "first": 0.0}))
WEAK = Member("weak", MAIN, 1, stack=build_specs("spin", spin={"kept": 0.5, "suppress": 0.25}))
BY_HEAD = Member("by head", MAIN, 1, stack=build_specs("adaiat", adaiat={"alpha": 0.5, "first": 0.0}))
BOTH = Member("both", MAIN, 1, stack=QUESTION.stack + EDITED.stack)
Factor = Callable[[int, float], float]  # key and its score -> factor of the score


def raise_image(key: int, score: float) -> float:
    return 1.0 + math.copysign(2.0, score) * (key < PROMPT and IMAGE[key] >= 0)


def raise_answer(key: int, score: float) -> float:
    return 1.0 + math.copysign(2.0, score) * (key >= PROMPT)


def scale_image(key: int, _: float) -> float:
    return 1.0 if key >= PROMPT or key > max(IMAGE.index(2), 0) else 2.0 if IMAGE[key] >= 0 else 0.5


def raise_and_scale(key: int, score: float) -> float:
    return raise_image(key, score) * scale_image(key, score)


def attend(step: ToyStep, row: int, token: int, position: int, window: int = 0, factor: Factor = raise_image) -> Tensor:
    """Compute the edited attention of one token by hand, head by head. Return [heads, head_dim]."""
    blocks = step.cache[step.block_table[row]]  # [blocks, kv heads, block, 2 * head_dim]
    first = max(0, position - window + 1) if window else 0
    outputs = []
    for head in range(HEADS):
        keys, values = blocks[:, head * KV_HEADS // HEADS].flatten(0, 1)[: position + 1].split(HEAD_DIM, -1)
        scores = keys @ step.query[token, head] * HEAD_DIM**-0.5
        for key in range(position + 1):
            scores[key] *= factor(key, float(scores[key]))
        outputs.append(scores[first:].softmax(-1) @ values[first:])
    return torch.stack(outputs)


@pytest.mark.parametrize("window", [0, 3])
def test_last_token_of_a_prompt_and_all_of_the_answer_are_edited(window: int) -> None:
    """The first row ends its prompt, the second one decodes, and the last one recomputes after a preemption."""
    torch.manual_seed(0)
    step = ToyStep(
        build_step(EDITED, EDITED, OTHER, EDITED, computed=[4, 8, 7, 3], lengths=[2, 1, 1, 6]), torch.device("cpu")
    )
    tap, layer = build_tap(torch.device("cpu"), window)
    assert step.run(tap, layer) == {}
    edited = {(0, 1): 5, (1, 2): 8, **{(3, 6 + n): 5 + n for n in range(4)}}  # row and token -> position
    for (row, token), position in edited.items():
        torch.testing.assert_close(step.output[token], attend(step, row, token, position, window))
    untouched = set(range(len(step.output))) - {token for _, token in edited}
    assert not step.output[sorted(untouched)].any()


def test_chunk_before_the_end_of_a_prompt_is_not_edited() -> None:
    step = ToyStep(build_step(EDITED, OTHER, computed=[0, 7], lengths=[4, 1]), torch.device("cpu"))
    tap, layer = build_tap(torch.device("cpu"))
    step.run(tap, layer)
    assert not step.output.any()


def test_tokens_of_the_answer_are_marked() -> None:
    """The first row ends its prompt, the second one decodes, and the last one recomputes after a preemption."""
    torch.manual_seed(0)
    members = (ANSWER, ANSWER, OTHER, ANSWER)
    step = ToyStep(build_step(*members, computed=[4, 8, 7, 3], lengths=[2, 1, 1, 6]), torch.device("cpu"))
    tap, layer = build_tap(torch.device("cpu"))
    assert step.run(tap, layer) == {}
    for row, token, position in ((0, 1, 5), (1, 2, 8), (3, 6, 5), (3, 7, 6), (3, 9, 8)):
        expected = attend(step, row, token, position, factor=raise_answer)
        torch.testing.assert_close(step.output[token], expected)


@pytest.mark.parametrize("window", [0, 3])
def test_keys_that_the_mask_leaves_are_marked(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def record_visible(_: AdaIAT, scores: Tensor, keys: AttentionKeys, _state: object) -> Tensor:
        seen.append(keys.is_visible)
        return scores

    monkeypatch.setattr(AdaIAT, "edit_attention_scores", record_visible)
    step = ToyStep(build_step(BY_HEAD, BY_HEAD, computed=[7, 9], lengths=[1, 1]), torch.device("cpu"))
    assert step.run(*build_tap(torch.device("cpu"), window)) == {}
    (visible,) = seen
    expected = [range(position - window + 1 if window else 0, position + 1) for position in (7, 9)]
    assert [row.nonzero().flatten().tolist() for row in visible] == [list(each) for each in expected]


@pytest.mark.parametrize("window", [0, 3])
def test_statistics_scale_weights_of_visible_tokens_of_the_answer(window: int) -> None:
    """Statistics of 1 in hallucinations give M of .5, 1, 2 and 3. The longer row has more keys than the first one."""
    torch.manual_seed(0)
    step = ToyStep(build_step(BY_HEAD, BY_HEAD, computed=[7, 9], lengths=[1, 1]), torch.device("cpu"))
    tap, layer = build_tap(torch.device("cpu"), window)
    assert step.run(tap, layer) == {}
    for row, position in ((0, 7), (1, 9)):
        blocks = step.cache[step.block_table[row]]
        for head, factor in enumerate((0.75, 1.0, 1.5, 2.0)):
            keys, values = blocks[:, head * KV_HEADS // HEADS].flatten(0, 1)[: position + 1].split(HEAD_DIM, -1)
            first = max(0, position - window + 1) if window else 0
            weights = (keys[first:] @ step.query[row, head] * HEAD_DIM**-0.5).softmax(-1)
            weights[max(PROMPT - first, 0) :] *= factor
            expected = weights @ values[first:] / weights.sum()
            torch.testing.assert_close(step.output[row, head], expected)


def test_heads_that_look_at_the_image_least_are_weakened() -> None:
    torch.manual_seed(0)
    step = ToyStep(build_step(WEAK, OTHER, WEAK, computed=[4, 7, 8], lengths=[2, 1, 1]), torch.device("cpu"))
    tap, layer = build_tap(torch.device("cpu"))
    assert step.run(tap, layer) == {}
    for row, token, position in ((0, 1, 5), (2, 3, 8)):
        outputs = attend(step, row, token, position, factor=lambda _key, _score: 1.0)
        blocks = step.cache[step.block_table[row]]
        gazes = [
            sum(
                float(blocks[key // 4, head * KV_HEADS // HEADS, key % 4, :HEAD_DIM] @ step.query[token, head])
                for key in range(1, 4)
            )
            for head in range(HEADS)
        ]
        for head in sorted(range(HEADS), key=gazes.__getitem__)[:2]:
            outputs[head] *= 0.25
        torch.testing.assert_close(step.output[token], outputs)


@pytest.mark.parametrize(("member", "factor"), [(QUESTION, scale_image), (BOTH, raise_and_scale)])
def test_question_is_edited_where_a_strategy_edits_it(member: Member, factor: Factor) -> None:
    """The image ends at position 3. Each row runs another part of its prompt, and of its answer."""
    torch.manual_seed(0)
    computed, lengths = [0, 0, 4, 2, 8], [4, 6, 1, 5, 1]
    step = ToyStep(build_step(*[member] * 5, computed=computed, lengths=lengths), torch.device("cpu"))
    tap, layer = build_tap(torch.device("cpu"))
    assert step.run(tap, layer) == {}
    token = 0
    for row, (start, count) in enumerate(zip(computed, lengths, strict=True)):
        for position in range(start, start + count):
            if position < 4:
                assert not step.output[token].any()
            else:  # PAI edits from the last token of the prompt on
                own = scale_image if position < PROMPT - 1 else factor
                torch.testing.assert_close(step.output[token], attend(step, row, token, position, factor=own))
            token += 1


@pytest.mark.parametrize("is_shape", [True, False])
def test_failing_edit_fails_its_own_request(is_shape: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both requests share the call of the hook, which fails where a key is not finite."""
    plain = PAI.edit_attention_scores

    def edit(self: PAI, scores: Tensor, keys: AttentionKeys, state: object) -> Tensor:
        if scores.isfinite().all():
            return plain(self, scores, keys, state)
        if is_shape:
            return scores[..., 1:]
        raise ZeroDivisionError

    monkeypatch.setattr(PAI, "edit_attention_scores", edit)
    step = ToyStep(build_step(EDITED, EDITED, computed=[7, 7], lengths=[1, 1]), torch.device("cpu"))
    step.cache[step.block_table[1, 0]] = torch.inf
    tap, layer = build_tap(torch.device("cpu"))
    with structlog.testing.capture_logs():
        token_info = step.run(tap, layer)
    assert set(token_info) == {"row-1"}
    assert token_info["row-1"]["strategy"] == "pai"
    torch.testing.assert_close(step.output[0], attend(step, 0, 0, 7))


def test_blocks_of_other_requests_do_not_change_an_edit() -> None:
    """A shorter row is edited beside a longer one, and so gathers blocks that it does not own."""
    step = ToyStep(build_step(EDITED, EDITED, computed=[7, 5], lengths=[1, 1]), torch.device("cpu"))
    step.cache[step.block_table[1, 1], :, 2:] = torch.inf  # positions 6 and 7 of the second row
    tap, layer = build_tap(torch.device("cpu"))
    assert step.run(tap, layer) == {}
    torch.testing.assert_close(step.output[1], attend(step, 1, 1, 5))


def test_edits_do_not_wait_for_the_device() -> None:
    with simulate_device(), torch.no_grad():
        rows = build_step(EDITED, WEAK, BOTH, BY_HEAD, computed=[4, 7, 3, 6], lengths=[2, 1, 6, 1])
        step = ToyStep(rows, DEVICE)
        tap, layer = build_tap(DEVICE)
        assert step.run(tap, layer) == {}
        assert step.output.device == DEVICE
