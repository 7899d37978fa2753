"""Branches that see a part of the image, on a toy cache with the layout of a GPU. No vLLM is needed."""

from __future__ import annotations

from typing import ClassVar

import pytest
import structlog
import torch
from torch import Tensor

from decoding.conformance.simulated_device import DEVICE, simulate_device
from decoding.registry import load_registry
from decoding.strategy import Strategy, Tensors
from decoding.vllm_engine.member import Member, PruningSpec, StrategySpec
from decoding.vllm_engine.worker.attention import token_pruning
from decoding.vllm_engine.worker.state_store import StateStore
from tests.decoding.vllm_engine.worker.harness import (
    CPU,
    HEAD_DIM,
    HEADS,
    IMAGE,
    KV_HEADS,
    OTHER,
    PROMPT,
    ToyStep,
    build_step,
    build_tap,
)

KEPT = [True, False, True]  # of the image tokens


class Keeps(Strategy):
    """Keeps the image tokens of its state."""

    name: ClassVar[str] = "keeps"
    paper: ClassVar[str] = "none"

    def keep_image_tokens(self, state: Tensors) -> Tensor | None:
        return state.get("kept")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(load_registry().strategies, Keeps.name, Keeps)


def build_states(kept: Tensor) -> StateStore:
    states = StateStore(1 << 20)
    states.put("state", {"kept": kept})
    return states


def build_branch(handle: str | None = "state") -> Member:
    return Member("gang", "keeps/part", 2, pruning=PruningSpec(StrategySpec("keeps", "{}"), handle))


def attend(step: ToyStep, row: int, token: int, position: int) -> Tensor:
    """Compute the attention of one token to the kept tokens by hand, head by head. Return [heads, head_dim]."""
    blocks = step.cache[step.block_table[row]]  # [blocks, kv heads, block, 2 * head_dim]
    visible = [
        key for key in range(position + 1) if key == position or key >= PROMPT or IMAGE[key] < 0 or KEPT[IMAGE[key]]
    ]
    outputs = []
    for head in range(HEADS):
        keys, values = blocks[:, head * KV_HEADS // HEADS].flatten(0, 1)[visible].split(HEAD_DIM, -1)
        outputs.append((keys @ step.query[token, head] * HEAD_DIM**-0.5).softmax(-1) @ values)
    return torch.stack(outputs)


@pytest.mark.parametrize("queries", [2, 256])
def test_no_token_of_a_branch_sees_a_dropped_one(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows run a whole prompt, a chunk of one, single tokens of answers, and another strategy's token."""
    monkeypatch.setattr(token_pruning, "MAX_QUERIES", queries)
    branch = build_branch()
    step = ToyStep(
        build_step(branch, branch, branch, OTHER, branch, computed=[0, 3, 8, 7, 6], lengths=[6, 3, 1, 1, 1]), CPU
    )
    tap, layer = build_tap(CPU, states=build_states(torch.tensor([KEPT])))
    assert step.run(tap, layer) == {}
    position = {**{n: (0, n) for n in range(6)}, **{6 + n: (1, 3 + n) for n in range(3)}, 9: (2, 8), 11: (4, 6)}
    for token, (row, own) in position.items():
        torch.testing.assert_close(step.output[token], attend(step, row, token, own))
    assert not step.output[10].any()


@pytest.mark.parametrize("handle", [None, "state"])
def test_branch_that_keeps_everything_is_left_alone(handle: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Keeps, "keep_image_tokens", lambda *_: None)
    step = ToyStep(build_step(build_branch(handle), computed=[0], lengths=[6]), CPU)
    tap, layer = build_tap(CPU, states=build_states(torch.tensor([KEPT])))
    assert step.run(tap, layer) == {}
    assert not step.output.any()


def test_mask_of_another_shape_fails_its_own_request() -> None:
    good, bad = build_states(torch.tensor([KEPT])), torch.ones(1, 2, dtype=torch.bool)
    good.put("bad", {"kept": bad})
    step = ToyStep(build_step(build_branch(), build_branch("bad"), computed=[7, 7], lengths=[1, 1]), CPU)
    tap, layer = build_tap(CPU, states=good)
    with structlog.testing.capture_logs():
        token_info = step.run(tap, layer)
    assert set(token_info) == {"row-1"}
    assert token_info["row-1"]["problem"] == "returned [1, 2] from `keep_image_tokens` instead of [1, 3]"
    torch.testing.assert_close(step.output[0], attend(step, 0, 0, 7))


def test_pruning_does_not_wait_for_the_device() -> None:
    with simulate_device(), torch.no_grad():
        step = ToyStep(build_step(build_branch(), build_branch(), computed=[0, 7], lengths=[6, 1]), DEVICE)
        tap, layer = build_tap(DEVICE, states=build_states(torch.tensor([KEPT]).to(DEVICE)))
        assert step.run(tap, layer) == {}
        assert step.output.device == DEVICE
