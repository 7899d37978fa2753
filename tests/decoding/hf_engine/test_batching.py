"""A request gives the same tokens alone and in a running batch, and so do the requests that run."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from decoding.hf_engine.engine import HFEngine
from decoding.pipeline.runner import StrategyRunner
from decoding.prompt import Prompt
from decoding.registry import list_strategies
from decoding.requests import GenerateRequest
from decoding.strategy import Strategy
from tests.decoding.hf_engine.harness import build_stack, exact_length, make_prompt, wait_until

LENGTH, LONG = 32, 80
QUESTIONS = [
    "Is there a cat in the image?",
    "How many chairs are in the picture?",
    "Please describe this image in detail.",
]
COMPANIONS = [
    (strategies, make_prompt(seed=10 + i, text=QUESTIONS[i % 3]), LONG)
    for i, strategies in enumerate(
        [
            build_stack("plain"),
            build_stack("vcd"),
            build_stack("agla+vhr"),
            build_stack("vdgd+vcd"),
            build_stack("pai"),
            build_stack("dola+paint"),
            build_stack("adaiat", adaiat={"alpha": 20.0, "beta": 10.0, "first": 0.0, "last": 1.0}),
            build_stack("deco+pai", pai={"gamma": 1.0, "alpha": 0.5}),
        ]
    )
]
NEWCOMERS = [
    *list_strategies(),
    "avisc+pai",
    "pai+vhr",
    "vcd+vhr",
    "agla+vhr",
    "vdgd+vcd",
    "agla+vcd",
    "m3id+vcd",
]
Wanted = tuple[tuple[Strategy, ...], Prompt, int]


class BatchMember:
    """One of several requests, and its tokens so far."""

    def __init__(self, engine: HFEngine, wanted: Wanted) -> None:
        self.strategies, self.prompt, self.length = wanted
        self.engine = engine
        self.tokens: list[int] = []
        self.has_started = asyncio.Event()

    async def run(self) -> list[int]:
        async with StrategyRunner(self.strategies, self.engine) as run:
            outcome = await run.resolve(GenerateRequest(self.prompt, exact_length(self.length)))
            async with aclosing(run.stream(outcome)) as tokens:
                async for token in tokens:
                    self.tokens.append(token.id)
                    if len(self.tokens) >= 3:
                        self.has_started.set()
        self.has_started.set()  # a vote has one token
        return self.tokens


@pytest.fixture(scope="module")
def expected(either: HFEngine) -> list[list[int]]:
    """Run the companions, each alone."""
    return [asyncio.run(BatchMember(either, companion).run()) for companion in COMPANIONS]


@pytest.mark.parametrize("names", NEWCOMERS)
async def test_joining_a_running_batch_changes_no_answer(
    names: str, either: HFEngine, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(either.worker.batch.cache, "max_slots", 1 << 20)  # the newcomer joins at once
    # The random model confirms nothing, so `verify` with its threshold would generate again longer than any companion.
    parameters = {"verify": {"threshold": 0.0}} if names == "verify" else {}
    stack = build_stack(names, **parameters)
    wanted = (stack, make_prompt(seed=2, text=QUESTIONS[0]), LENGTH)
    companions = [BatchMember(either, companion) for companion in COMPANIONS]
    newcomer = BatchMember(either, wanted)
    async with asyncio.TaskGroup() as group:
        for companion in companions:
            group.create_task(companion.run())
        await asyncio.gather(*(companion.has_started.wait() for companion in companions))
        joining = group.create_task(newcomer.run())
        await newcomer.has_started.wait()
        assert not any(len(companion.tokens) == LONG for companion in companions)
    assert [companion.tokens for companion in companions] == expected
    assert joining.result() == await BatchMember(either, wanted).run()


@pytest.mark.parametrize("names", ["agla+vcd", "dola+sharpen", "m3id+vcd"])
async def test_requests_with_different_parameters_share_hook_calls(names: str, engine: HFEngine) -> None:
    """The requests share hook calls."""
    betas = [0.0, 0.05, 0.1, 0.3, 0.6]
    lazy = {"m3id": {"lazy": True}}
    parameters = [{name: {"beta": beta, **lazy.get(name, {})} for name in names.split("+")} for beta in betas]
    wanted = [(build_stack(names, **each), make_prompt(seed=3), LENGTH) for each in parameters]
    wanted += [
        (build_stack("vcd", vcd={"alpha": 4 * beta, "noise_seed": 7}), make_prompt(seed=3), LENGTH) for beta in betas
    ]
    together = await asyncio.gather(*(BatchMember(engine, each).run() for each in wanted))
    assert together == [await BatchMember(engine, each).run() for each in wanted]
    assert len({tuple(tokens) for tokens in together}) > 2


@pytest.mark.parametrize("names", ["vdgd", "vdgd+vcd", "m3id+vdgd"])
async def test_requests_with_states_finish_at_different_steps(names: str, engine: HFEngine) -> None:
    """The requests share hook calls, each with its state. A request that leaves changes the order of the others."""
    stack = build_stack(names, **({"m3id": {"lazy": True, "beta": 0.5}} if "m3id" in names else {}))
    wanted = [(stack, make_prompt(seed=20 + i, text=QUESTIONS[i % 3]), length) for i, length in enumerate((6, 12, 24))]
    wanted += [(build_stack("plain"), make_prompt(seed=3), 9), (stack, make_prompt(seed=24), 24)]
    together = await asyncio.gather(*(BatchMember(engine, each).run() for each in wanted))
    assert together == [await BatchMember(engine, each).run() for each in wanted]
    await wait_until(lambda: not engine.worker.batch._hook_runner._batches)


async def test_equal_concurrent_requests_give_equal_tokens(engine: HFEngine) -> None:
    """Their prompts run once for all of them."""
    wanted = (build_stack("agla+vhr"), make_prompt(seed=3), LENGTH)
    runs = await asyncio.gather(*(BatchMember(engine, wanted).run() for _ in range(5)))
    assert all(tokens == runs[0] for tokens in runs)
