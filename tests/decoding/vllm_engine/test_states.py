"""Strategy states are bounded in bytes, next to the model and in the server process. No vLLM is needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from decoding.errors import BadRequest, EngineFailed, Overloaded, StrategyFailed
from decoding.vllm_engine.frontend.output_parser import raise_failure
from decoding.vllm_engine.frontend.state_handles import StateHandles
from decoding.vllm_engine.worker.state_store import StateStore, measure_updated_state
from decoding.vllm_engine.worker.step_rows import TokenInfo, record_failure
from tests.decoding.hf_engine.harness import build_stack

VOCAB = 100
(VDGD,) = build_stack("vdgd")
SIZE = 4 * (VOCAB + 1)  # first float32 a word, and the number of tokens


def test_state_without_room_is_refused_before_anything_runs() -> None:
    handles = StateHandles(max_bytes=2 * SIZE)
    size = measure_updated_state(VDGD, VOCAB)
    assert size == SIZE
    first, _ = handles.create(size), handles.create(size)
    with pytest.raises(Overloaded, match="try again") as refused:
        handles.create(size)
    assert refused.value.code == "memory_full"
    handles.create()  # a small first
    assert handles.free(first)
    handles.create(size)
    with pytest.raises(BadRequest, match=f"this engine holds {2 * SIZE}"):
        handles.create(2 * SIZE + 1)


def test_state_in_use_keeps_its_bytes() -> None:
    handles = StateHandles(max_bytes=SIZE)
    state = handles.create(SIZE)
    with handles.hold([state]) as freed:
        assert not handles.free(state)
        with pytest.raises(Overloaded):
            handles.create(SIZE)
    assert freed == [state]
    assert handles.free(state)
    handles.create(SIZE)


def test_state_store_is_bounded() -> None:
    store = StateStore(max_bytes=100)
    store.put("one", {"support": torch.zeros(20)})
    store.put("one", {"support": torch.ones(25)})  # in its place
    with pytest.raises(Overloaded):
        store.put("two", {"support": torch.zeros(1)})
    assert store.num_bytes == 100
    assert store.get("one")["support"].all()


def test_size_of_a_state_is_0_if_the_hook_raises() -> None:
    assert measure_updated_state(SimpleNamespace(update_state=lambda *_: 1 / 0), VOCAB) == 0  # type: ignore[arg-type]


def test_recorded_failures_are_raised() -> None:
    with pytest.raises(Overloaded, match="Full") as full:
        raise_failure({"error": "Full.", "error_code": "memory_full"})
    assert full.value.code == "memory_full"
    with pytest.raises(EngineFailed, match="The strategy failed"):
        raise_failure({"error": "The strategy failed on this request."})
    with pytest.raises(EngineFailed):
        raise_failure({}, has_failed=True)
    token_info: TokenInfo = {}
    record_failure(token_info, "request", StrategyFailed("vcd", "returned nan logits"), "logits_hook_failed")
    with pytest.raises(StrategyFailed, match="Strategy 'vcd' returned nan logits") as failure:
        raise_failure(token_info["request"])
    assert failure.value.strategy == "vcd"
    raise_failure({"changed": True})
