"""A strategy that fails, fails its own request with a message that names it, and no other request of the batch."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from decoding.errors import EngineFailed
from decoding.outputs import Answer
from decoding.pipeline.runner import collect_answer
from decoding.registry import load_registry
from decoding.requests import GenerateRequest, ProbeRequest
from tests.decoding.failing_strategy import FailingStrategy, register
from tests.decoding.hf_engine.harness import exact_length, run_strategies
from tests.decoding.vllm_engine.conftest import start_engine
from tests.decoding.vllm_engine.scenes import STACKS, generate_all, get_token_ids, load_prompts

SCHEDULER = "tests.decoding.vllm_engine.schedulers.RegisteringScheduler"
TOKENS = 12
(PROMPT, OTHER_PROMPT) = load_prompts(2)


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """Register the strategy in the server process, too."""
    register()
    yield
    del load_registry().strategies[FailingStrategy.name]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def engine(registered: None) -> AsyncIterator[Any]:
    engine = await start_engine(max_rows=16, scheduler=SCHEDULER)
    yield engine
    await engine.close()


async def fail_beside_others(engine: Any, failing: Any) -> EngineFailed:
    """Run a failing request beside others, check the others, and return the failure."""
    requests = [(STACKS[name], OTHER_PROMPT) for name in ("plain", "vcd", "truncate")]
    alone = [get_token_ids(each) for each in await generate_all(engine, requests, TOKENS)]
    others = asyncio.create_task(generate_all(engine, requests, TOKENS))
    with pytest.raises(EngineFailed) as failure:
        await failing
    assert [get_token_ids(each) for each in await others] == alone
    report = await engine.report()
    assert report["gangs"] == report["requests"] == report["workers"][0]["states"] == 0
    assert report["counters"]["violations"] == 0
    return failure.value


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("nan", "Strategy 'failing' returned nan logits."),
        ("-inf", "Strategy 'failing' left no token: all logits are -inf."),
        ("logits", "Strategy 'failing' failed: ValueError."),
        ("needs_branches", "Strategy 'failing' failed: ZeroDivisionError."),
        ("head_scales", "Strategy 'failing' failed: ZeroDivisionError."),
        ("edit_attention_scores", "Strategy 'failing' failed: ZeroDivisionError."),
        ("early_exit_layers", "Strategy 'failing' failed: ZeroDivisionError."),
    ],
)
async def test_failing_hook_fails_its_own_request_only(hook: str, message: str, engine: Any) -> None:
    failing = run_strategies(engine, (FailingStrategy(hook=hook),), PROMPT, exact_length(TOKENS))
    assert (await fail_beside_others(engine, failing)).message == message


@pytest.mark.parametrize("hook", ["shape", "head_scales shape", "scores shape"])
async def test_wrong_shape_fails_its_own_request_only(hook: str, engine: Any) -> None:
    failing = run_strategies(engine, (FailingStrategy(hook=hook),), PROMPT, exact_length(TOKENS))
    assert "'failing' returned" in (await fail_beside_others(engine, failing)).message


@pytest.mark.parametrize("method", ["before_forward", "after_forward", "before_sampling", "after_sampling"])
async def test_fault_of_the_engine_fails_the_gangs_of_the_step_only(method: str, engine: Any) -> None:
    """Plain requests go on, the engine core too, and gangs that come later have their answers."""
    wanted = [(STACKS[name], OTHER_PROMPT) for name in ("plain", "vcd")]
    (plain, vcd) = [get_token_ids(each) for each in await generate_all(engine, wanted, TOKENS)]
    other = asyncio.create_task(generate_all(engine, wanted[:1], TOKENS))
    with pytest.raises(EngineFailed) as failure:
        await run_strategies(engine, (FailingStrategy(hook=method),), PROMPT, exact_length(TOKENS))
    assert failure.value.message == "The engine failed on this request."
    assert [get_token_ids(each) for each in await other] == [plain]
    assert [get_token_ids(each) for each in await generate_all(engine, wanted[1:], TOKENS)] == [vcd]
    report = await engine.report()
    assert (
        report["gangs"] == report["requests"] == report["workers"][0]["states"] == report["counters"]["violations"] == 0
    )


async def test_failing_requests_do_not_fail_requests_that_share_their_hook_calls(engine: Any) -> None:
    """Requests whose hooks do not fail share the calls with one that fails: the parameter belongs to the batch key."""
    stacks = [(FailingStrategy(hook=hook),) for hook in ("none", "nan", "none", "logits")]
    results = await asyncio.gather(
        *(run_strategies(engine, stack, PROMPT, exact_length(TOKENS)) for stack in stacks), return_exceptions=True
    )
    assert [isinstance(result, EngineFailed) for result in results] == [False, True, False, True]
    (plain,) = await generate_all(engine, [(STACKS["plain"], PROMPT)], TOKENS)
    answers = [result[0] for result in results if isinstance(result, tuple)]
    assert all(isinstance(each, Answer) and get_token_ids(each) == get_token_ids(plain) for each in answers)


async def test_failing_update_state_fails_its_own_request_only(engine: Any) -> None:
    request = GenerateRequest(PROMPT, exact_length(TOKENS), updates_state=True, strategy=FailingStrategy())
    failure = await fail_beside_others(engine, collect_answer(engine.generate(request)))
    assert failure.message == "Strategy 'failing' failed: ZeroDivisionError."


async def test_failing_probe_fails_its_own_request_only(engine: Any) -> None:
    probe = ProbeRequest({"main": PROMPT}, main="main").with_strategy(FailingStrategy())
    failure = await fail_beside_others(engine, engine.probe(probe))
    assert failure.message == "Strategy 'failing' failed: ZeroDivisionError."
