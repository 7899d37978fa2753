"""Many gangs in a KV cache that is too small for them give exact tokens, with preemption and chunked prefill."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from typing import Any

import pytest

from decoding.errors import EngineFailed
from decoding.outputs import Answer
from decoding.prompt import Prompt
from decoding.strategy import Strategy
from decoding.vllm_engine import engine as engine_module
from decoding.vllm_engine.frontend import engine_args
from decoding.vllm_engine.plugin import ENABLE_VARIABLE
from tests.decoding.hf_engine.harness import build_stack
from tests.decoding.vllm_engine.conftest import TIGHT, start_engine
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

STOCK = "vllm.v1.core.sched.scheduler.Scheduler"
FAULTY = "tests.decoding.vllm_engine.schedulers.FaultyScheduler"
GANGS, PLAIN, TOKENS = 48, 8, 24


def mixed_requests() -> list[tuple[Sequence[Strategy], Prompt]]:
    """Return requests with mixed strategies, and some without a gang between them."""
    scenes = load_prompts(24)
    mixed = [strategies for name, strategies in STACKS.items() if name not in ("plain", "truncate", "sharpen")]
    mixed += [build_stack("vhr"), build_stack("agla+vhr")]
    gangs: list[tuple[Sequence[Strategy], Prompt]] = list(zip(islice(cycle(mixed), GANGS), cycle(scenes)))
    for number in range(PLAIN):
        name = ("plain", "truncate", "sharpen")[number % 3]
        gangs.insert(number * 7, (STACKS[name], scenes[number]))
    return gangs


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    return {}


async def expected_tokens(hf_engine: Any, expected: dict[str, list[list[int]]]) -> list[list[int]]:
    if "tokens" not in expected:
        expected["tokens"] = [get_token_ids(each) for each in await generate_all(hf_engine, mixed_requests(), TOKENS)]
    return expected["tokens"]


@asynccontextmanager
async def run_engine(**settings: Any) -> AsyncIterator[Any]:
    engine = await start_engine(**TIGHT | settings)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize("prefix_cache", [True, False])
async def test_many_gangs_in_a_small_cache_are_exact(prefix_cache: bool, hf_engine: Any, expected: Any) -> None:
    expected_ids = await expected_tokens(hf_engine, expected)
    async with run_engine(prefix_cache=prefix_cache) as engine:
        for _ in range(3):  # from the second time on with a warm prefix cache
            actual = await generate_all(engine, mixed_requests(), TOKENS)
            assert [get_token_ids(each) for each in actual] == expected_ids
        report = await engine.report()
        counters = report["counters"]
        assert counters["preemptions"] + counters["others_preempted"] >= 20
        assert counters["preemptions"] > 0
        assert counters["alone"] > 0  # probes
        assert counters["violations"] == counters["stock_preemptions"] == counters["failed"] == 0
        assert report["requests"] == report["gangs"] == report["workers"][0]["states"] == 0
        assert report["free_blocks"] == report["blocks"] - 1


async def test_lone_tokens_are_dropped_and_sampled_again(hf_engine: Any, expected: Any) -> None:
    """The scheduler withholds a member in a tenth of its steps."""
    expected_ids = await expected_tokens(hf_engine, expected)
    async with run_engine(scheduler=FAULTY) as engine:
        assert [get_token_ids(each) for each in await generate_all(engine, mixed_requests(), TOKENS)] == expected_ids
        counters = (await engine.report())["counters"]
        assert counters["violations"] == counters["redone"] > 20


async def test_stock_scheduler_gives_wrong_tokens(
    hf_engine: Any, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own scheduler separates the members, which shows that the comparison above can fail."""
    # It would cut the prompts of a probe, whose state would then be missing.
    requests = [
        each
        for each in zip(mixed_requests(), await expected_tokens(hf_engine, expected), strict=True)
        if not scales_heads(each[0][0])
    ]
    monkeypatch.setattr(engine_module, "check_report", lambda *_: None)
    monkeypatch.setattr(engine_module, "check_lockstep", lambda *_: None)
    async with run_engine(scheduler=STOCK) as engine:
        actual = await asyncio.gather(
            *(generate_or_none(engine, strategies, prompt) for (strategies, prompt), _ in requests)
        )
        wrong = sum(
            each is None or get_token_ids(each) != exact for each, (_, exact) in zip(actual, requests, strict=True)
        )
        assert wrong > 10


async def test_engine_does_not_start_without_the_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM itself starts although a plugin fails to load."""
    monkeypatch.setitem(engine_args.ENVIRONMENT, ENABLE_VARIABLE, "0")
    with pytest.raises(EngineFailed, match="did not load the OnlySeen plugin"):
        await start_engine(**TIGHT)


def scales_heads(strategies: Sequence[Strategy]) -> bool:
    return any("head_scales" in strategy.list_hooks() for strategy in strategies)


async def generate_or_none(engine: Any, strategies: Sequence[Strategy], prompt: Prompt) -> Answer | None:
    try:
        (actual,) = await generate_all(engine, [(strategies, prompt)], TOKENS)
    except EngineFailed:
        return None
    return actual
