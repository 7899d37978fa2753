"""Memories are bounded in bytes, where the tensors are and where their names are; no vLLM needed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from decoding.errors import BadRequest, EngineFailed, Overloaded
from decoding.vllm_engine.answering import failure
from decoding.vllm_engine.handles import Handles
from decoding.vllm_engine.memories import Memories, digested_size
from tests.decoding.hf_engine.asking import stack

VOCAB = 100
(VDGD,) = stack("vdgd")
SIZE = 4 * (VOCAB + 1)  # one float32 a word, and the number of tokens


def test_what_finds_no_room_is_refused_before_anything_runs() -> None:
    handles = Handles(most_bytes=2 * SIZE)
    size = digested_size(VDGD, VOCAB)
    assert size == SIZE
    one, _ = handles.new(size), handles.new(size)
    with pytest.raises(Overloaded, match="try again") as refused:
        handles.new(size)
    assert refused.value.code == "memory_full"
    handles.new()  # a small one
    assert handles.forget(one)
    handles.new(size)
    with pytest.raises(BadRequest, match=f"this engine holds {2 * SIZE}"):
        handles.new(2 * SIZE + 1)


def test_a_memory_in_use_keeps_its_room() -> None:
    handles = Handles(most_bytes=SIZE)
    memory = handles.new(SIZE)
    with handles.used([memory]) as freed:
        assert not handles.forget(memory)
        with pytest.raises(Overloaded):
            handles.new(SIZE)
    assert freed == [memory]
    assert handles.forget(memory)
    handles.new(SIZE)


def test_next_to_the_model_the_bound_holds_too() -> None:
    memories = Memories(most_bytes=100)
    memories.keep("one", {"told": torch.zeros(20)})
    memories.keep("one", {"told": torch.ones(25)})  # in its place
    with pytest.raises(Overloaded):
        memories.keep("two", {"told": torch.zeros(1)})
    assert memories.bytes == 100
    assert memories.recall("one")["told"].all()


def test_a_strategy_that_cannot_digest_fails_where_it_runs() -> None:
    assert digested_size(SimpleNamespace(digest=lambda *_: 1 / 0), VOCAB) == 0  # type: ignore[arg-type]


def test_no_room_is_not_a_failure_of_the_engine() -> None:
    assert isinstance(failure({"failed": "Full.", "code": "memory_full"}), Overloaded)
    assert isinstance(failure({"failed": "The strategy failed on this request."}), EngineFailed)
