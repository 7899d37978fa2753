"""Two processes that share each layer give the tokens of the transformers engine, in a cache of a few blocks, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.decoding.hf_engine.harness import build_stack, exact_length, run_strategies
from tests.decoding.vllm_engine.conftest import TIGHT, start_engine
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

PROMPTS = 6
TOKENS = 16
SHARED_MEMORY = Path("/dev/shm")
HEADS = {"vhr": build_stack("vhr"), "agla+vhr": build_stack("agla+vhr"), "vhr+vcd": build_stack("vhr+vcd")}


def list_segments() -> set[str]:
    """List the shared memory. Semaphores of other engines come and go."""
    return {file.name for file in SHARED_MEMORY.iterdir() if not file.name.startswith("sem.")}


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine() -> AsyncIterator[Any]:
    """Start an engine with two processes. When it has stopped, none of its shared memory is left."""
    before = list_segments()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # the processes wait for each other, and share the machine's cores
        engine = await start_engine(tensor_parallel=2, **TIGHT)
    yield engine
    await engine.close()
    assert list_segments() <= before


@pytest.mark.parametrize("names", [*STACKS, *HEADS])
async def test_strategy_equals_the_transformers_engine(names: str, engine: Any, hf_engine: Any) -> None:
    requests = [((STACKS | HEADS)[names], prompt) for prompt in load_prompts(PROMPTS)]
    expected = await generate_all(hf_engine, requests, TOKENS)
    actual = await generate_all(engine, requests, TOKENS)
    assert [get_token_ids(each) for each in actual] == [get_token_ids(each) for each in expected]


async def test_gangs_were_preempted_and_kept_together(engine: Any) -> None:
    counters = (await engine.report())["counters"]
    assert counters["preemptions"] > 0
    assert counters["violations"] == 0


async def test_processes_sample_the_same_tokens(engine: Any, roomy_engine: Any) -> None:
    """A process that drew another token would compute other keys and values from then on."""
    sampling = exact_length(TOKENS, temperature=1.0, top_p=0.9, seed=3, repetition_penalty=1.2, top_logprobs=1)
    prompts = load_prompts(4)
    expected, actual = [
        await asyncio.gather(*(run_strategies(each, build_stack("vcd"), prompt, sampling) for prompt in prompts))
        for each in (roomy_engine, engine)
    ]
    assert [get_token_ids(answer) for answer, _ in actual] == [get_token_ids(answer) for answer, _ in expected]


async def test_every_process_has_the_hooks_and_frees_its_states(engine: Any) -> None:
    await generate_all(engine, [(build_stack("vhr"), prompt) for prompt in load_prompts(2)], 2)
    for _ in range(100):
        workers = (await engine.report())["workers"]
        if not any(worker["states"] for worker in workers):
            break
        await asyncio.sleep(0.05)
    assert len(workers) == 2
    assert workers[0] == workers[1]
    assert not workers[0]["states"]
    assert not workers[0]["missing"]
