"""Continuations that share a row of a pass give what each gives alone."""

from __future__ import annotations

import pytest
import torch

from decoding.hf_engine.engine import HFEngine
from decoding.hf_engine.model.token_tree import TokenTree, build_tree_mask
from decoding.prompt import Prompt
from tests.decoding.hf_engine.harness import make_prompt

CONTINUATIONS = [[7, 8, 9], [7, 8, 4, 5], [6], [7, 8, 9], [7]]


def test_tokens_that_continuations_begin_with_run_once() -> None:
    tree = TokenTree.build(CONTINUATIONS)
    assert tree.tokens == [7, 8, 9, 4, 5, 6]
    assert tree.depths == [0, 1, 2, 2, 3, 0]
    assert tree.paths == [[0, 1, 2], [0, 1, 3, 4], [5], [0, 1, 2], [0]]
    for continuation, path in zip(CONTINUATIONS, tree.paths, strict=True):
        assert [tree.tokens[number] for number in path] == continuation
        assert tree.visibility[path[-1]].nonzero().flatten().tolist() == sorted(path)


@pytest.mark.parametrize("window", [None, 3])
def test_mask_shows_each_token_its_own_past(window: int | None) -> None:
    past, trees = [4, 2], [TokenTree.build(CONTINUATIONS), TokenTree.build([[1, 2]])]
    mask = build_tree_mask(past, trees, window, torch.float32)
    assert mask.shape == (2, 1, 6, 10)
    assert (mask == 0).any(-1).all(), "a row that shows nothing may give nan"
    for row, (length, tree) in enumerate(zip(past, trees, strict=True)):
        for path in tree.paths:
            columns = [*range(4 - length, 4), *(4 + number for number in path)]
            for depth, number in enumerate(path):
                own = columns[: length + depth + 1]
                expected = set(own if window is None else own[-window:])
                assert set((mask[row, 0, number] == 0).nonzero().flatten().tolist()) == expected


@torch.inference_mode()
@pytest.mark.parametrize("lengths", [(0, 0), (0, 5)])
def test_shared_row_equals_rows_of_their_own(lengths: tuple[int, int], engine: HFEngine) -> None:
    """Also with states of different lengths, and as states of further passes."""
    model = engine.model
    prompts = [
        model.encoder.encode(prompt).with_tokens([3] * length)
        for prompt, length in zip((make_prompt(1), Prompt.from_text("Describe.")), lengths, strict=True)
    ]
    states = model.prefill(prompts)
    shared = model.extend(states, [CONTINUATIONS, [[1, 2], [1, 3]]])
    for state, continuations, outputs in zip(states, (CONTINUATIONS, [[1, 2], [1, 3]]), shared, strict=True):
        for continuation, output in zip(continuations, outputs, strict=True):
            ((alone,),) = model.extend([state], [[continuation]])
            assert (output.length, output.next_position) == (alone.length, alone.next_position)
            torch.testing.assert_close(output.logits, alone.logits, atol=1e-4, rtol=0)
            ((further,),) = model.extend([output], [[[11, 12]]])
            ((expected,),) = model.extend([alone], [[[11, 12]]])
            torch.testing.assert_close(further.logits, expected.logits, atol=1e-4, rtol=0)
