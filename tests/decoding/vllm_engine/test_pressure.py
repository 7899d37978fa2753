"""Many gangs of all kinds in a cache that is too small for them: preempted, cut into chunks, and still exact."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle, islice
from typing import Any

import pytest

from decoding.answer import Answer
from decoding.errors import EngineFailed
from decoding.prompt import Prompt
from decoding.strategy import Strategy
from decoding.vllm_engine import configuration, selftest
from tests.decoding.hf_engine.asking import stack
from tests.decoding.vllm_engine.conftest import TIGHT, started
from tests.decoding.vllm_engine.scenes import STACKS, answers, ids, prompts

STOCK = "vllm.v1.core.sched.scheduler.Scheduler"
FORGETFUL = "tests.decoding.vllm_engine.forgetful.Forgetful"
GANGS, PLAIN, TOKENS = 48, 8, 24


def crowd() -> list[tuple[Sequence[Strategy], Prompt]]:
    """Mixed strategies, with requests that have none between them."""
    asked = prompts(24)
    mixed = [strategies for name, strategies in STACKS.items() if name not in ("plain", "truncate", "sharpen")]
    mixed += [stack("vhr"), stack("agla+vhr")]
    gangs: list[tuple[Sequence[Strategy], Prompt]] = list(zip(islice(cycle(mixed), GANGS), cycle(asked)))
    for number in range(PLAIN):
        name = ("plain", "truncate", "sharpen")[number % 3]
        gangs.insert(number * 7, (STACKS[name], asked[number]))
    return gangs


@pytest.fixture(scope="module")
def expected() -> dict[str, list[list[int]]]:
    return {}


async def truth(hf: Any, expected: dict[str, list[list[int]]]) -> list[list[int]]:
    if "crowd" not in expected:
        expected["crowd"] = [ids(one) for one in await answers(hf, crowd(), TOKENS)]
    return expected["crowd"]


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Any]:
    engine = await started(**TIGHT | settings)
    try:
        yield engine
    finally:
        await engine.close()


@pytest.mark.parametrize("prefix_cache", [True, False])
async def test_a_crowd_in_a_small_cache_answers_exactly(prefix_cache: bool, hf: Any, expected: Any) -> None:
    right = await truth(hf, expected)
    async with running(prefix_cache=prefix_cache) as engine:
        for _ in range(3):  # from the second time on with a warm prefix cache
            assert [ids(one) for one in await answers(engine, crowd(), TOKENS)] == right
        report = await engine.report()
        counters = report["counters"]
        assert counters["preemptions"] + counters["others_preempted"] >= 20
        assert counters["preemptions"] > 0
        assert counters["alone"] > 0  # probes
        assert counters["violations"] == counters["stock_preemptions"] == counters["failed"] == 0
        assert report["requests"] == report["gangs"] == report["worker"]["memories"] == 0
        assert report["free_blocks"] == report["blocks"] - 1


async def test_a_member_left_behind_is_waited_for(hf: Any, expected: Any) -> None:
    """The scheduler forgets a member in a tenth of its steps: the tokens of the others are drawn again."""
    right = await truth(hf, expected)
    async with running(scheduler=FORGETFUL) as engine:
        assert [ids(one) for one in await answers(engine, crowd(), TOKENS)] == right
        counters = (await engine.report())["counters"]
        assert counters["violations"] == counters["redone"] > 20


async def test_without_gangs_the_texts_are_wrong(hf: Any, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's own scheduler parts the members, which shows that the comparison above can fail."""
    # It would cut the prompts of a probe: an answer without its factors ends vLLM, not only itself.
    asked = [one for one in zip(crowd(), await truth(hf, expected), strict=True) if not scales_heads(one[0][0])]
    monkeypatch.setattr(selftest, "check", lambda *_: None)
    monkeypatch.setattr(selftest, "run", lambda _: asyncio.sleep(0))
    async with running(scheduler=STOCK) as engine:
        said = await asyncio.gather(*(attempt(engine, strategies, prompt) for (strategies, prompt), _ in asked))
        wrong = sum(one is None or ids(one) != exact for one, (_, exact) in zip(said, asked, strict=True))
        assert wrong > 10


async def test_a_server_without_the_plugin_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM goes on without a plugin that fails to load: our engine asks."""
    monkeypatch.setitem(configuration.ENVIRONMENT, configuration.ASKED, "0")
    with pytest.raises(EngineFailed, match="did not load the OnlySeen plugin"):
        await started(**TIGHT)


def scales_heads(strategies: Sequence[Strategy]) -> bool:
    return any("heads" in strategy.hooks() for strategy in strategies)


async def attempt(engine: Any, strategies: Sequence[Strategy], prompt: Prompt) -> Answer | None:
    try:
        (said,) = await answers(engine, [(strategies, prompt)], TOKENS)
    except EngineFailed:
        return None
    return said
